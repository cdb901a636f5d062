r"""Why convolutions do not align: a kernel's matrix, and the best alignment that it can reach.

A convolution is a linear map whose matrix is sparse and repeats each weight at every position
(block Toeplitz). `F_l F_{l-1}^T` of random feedback has neither property, so few of its entries can
be matched. Source: the argument of Refinetti et al. (2021), arXiv 2011.12428; the bound is our own.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dfa_jax.errors import InputError


def output_size(input_size: int, kernel_size: int, stride: int = 1) -> int:
    """Output positions along a side, without padding.

    >>> output_size(32, 4)
    29
    """
    if not 1 <= kernel_size <= input_size or stride < 1:
        raise InputError(
            f"kernel_size is {kernel_size}, stride {stride} on inputs of side {input_size};"
            " expected a kernel that fits in and a stride of at least 1"
        )
    return (input_size - kernel_size) // stride + 1


def toeplitz(
    kernel: Float[Array, "k k c_in c_out"], input_size: int, stride: int = 1
) -> Float[Array, "d_in d_in c_in d_out d_out c_out"]:
    """The matrix of a convolution without padding: output = contraction of input with it."""
    k = kernel.shape[0]
    d_out = output_size(input_size, k, stride)
    rows, offsets = np.arange(d_out) * stride, np.arange(k)
    matrix = jnp.zeros(
        (input_size, input_size, kernel.shape[2], d_out, d_out, kernel.shape[3]), kernel.dtype
    )
    # Entry (position of output p, q; offset i, j) sits at input (p s + i, q s + j).
    p, q, i, j = np.meshgrid(np.arange(d_out), np.arange(d_out), offsets, offsets, indexing="ij")
    return matrix.at[rows[p] + i, rows[q] + j, :, p, q, :].set(kernel[i, j])


def reachable_alignment(
    target: Float[Array, "d_in d_in c_in d_out d_out c_out"],
    kernel_size: int,
    stride: int = 1,
    *,
    shared: bool = True,
) -> Float[Array, ""]:
    r"""The largest cosine between `target` and the matrix of any kernel: `|P target| / |target|`.

    `P` projects on the matrices of convolutions (each weight the mean over its positions) or, with
    `shared=False`, of locally connected layers (each position its own weights).
    """
    d_in, d_out = target.shape[0], target.shape[3]
    if d_out != output_size(d_in, kernel_size, stride):
        raise InputError(
            f"target has {d_in} input and {d_out} output positions a side; a kernel of"
            f" {kernel_size} with stride {stride} has {output_size(d_in, kernel_size, stride)}"
        )
    offsets = np.arange(kernel_size)
    p, q, i, j = np.meshgrid(np.arange(d_out), np.arange(d_out), offsets, offsets, indexing="ij")
    entries = target[p * stride + i, q * stride + j, :, p, q, :]  # [d_out, d_out, k, k, ci, co]
    if shared:
        kept = jnp.sqrt(jnp.square(entries.sum((0, 1))).sum()) / d_out
    else:
        kept = jnp.linalg.norm(entries)
    return kept / jnp.linalg.norm(target)


def expected_alignment(
    input_size: int, kernel_size: int, stride: int = 1, *, shared: bool = True
) -> float:
    r"""Its root mean square for unstructured targets: `k / (d_in d_out)`; `k / d_in` if not shared.

    The number of free weights over that of the matrix's entries, and the root of it; channels and
    the number of classes drop out.

    >>> round(expected_alignment(32, 4), 4)
    0.0043
    """
    positions = output_size(input_size, kernel_size, stride) if shared else 1
    return kernel_size / (input_size * positions)


def random_target(
    key: Array, input_size: int, c_in: int, output_size: int, c_out: int, num_classes: int
) -> Float[Array, "d_in d_in c_in d_out d_out c_out"]:
    """`F_l F_{l-1}^T` of Gaussian feedback, in the axes of `toeplitz`."""
    below_key, above_key = jax.random.split(key)
    below = jax.random.normal(below_key, (input_size, input_size, c_in, num_classes))
    above = jax.random.normal(above_key, (output_size, output_size, c_out, num_classes))
    return jnp.einsum("abcm,pqom->abcpqo", below, above) / math.sqrt(num_classes)
