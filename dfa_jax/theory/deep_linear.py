r"""Deep linear networks under (direct) feedback alignment: alignment matrices and their spectra.

A network `y = W_L ... W_1 x` with hidden feedback `F_1, ..., F_{L-1}` (`F_l`: `[n_l, C]`, the error
`e` reaches layer `l` as `F_l e`), squared loss, started from zero. For any data in any order,

    W_1 = F_1 A_1,    W_l = F_l A_l F_{l-1}^T,    W_L = A_L F_{L-1}^T,

with small matrices `A_1` `[C, D]` and `A_l` `[C, C]` of their own dynamics. So weights align with
the feedback (*weak* alignment); they align fully where every `A_l` is proportional to the identity,
and the conditioning of `A_l` says by how much.

Source: Refinetti et al. (2021), arXiv 2011.12428. Feedback alignment is the case
`F_l = B_{l+1} ... B_L` of the same theorem.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from dfa_jax.errors import InputError


def check_feedback(feedback: Sequence[Array]) -> None:
    """Refuses feedback that is not one matrix `[n_l, C]` a hidden layer with one `C`."""
    shapes = [F.shape for F in feedback]
    if not shapes or any(len(s) != 2 or s[1] != shapes[0][-1] for s in shapes):
        raise InputError(
            f"feedback has shapes {shapes}; expected one matrix [n_l, C] a hidden layer, all with"
            " the same number C of outputs"
        )


def zero_alignment(feedback: Sequence[Float[Array, "_ C"]], num_inputs: int) -> list[Array]:
    """`A_1, ..., A_L` of the network whose weights are zero."""
    check_feedback(feedback)
    C, dtype = feedback[0].shape[1], feedback[0].dtype
    shapes = [(C, num_inputs)] + [(C, C)] * len(feedback)
    return [jnp.zeros(shape, dtype) for shape in shapes]


def alignment_step(
    A: Sequence[Array],
    feedback: Sequence[Float[Array, "_ C"]],
    inputs: Float[Array, "batch D"],
    targets: Float[Array, "batch C"],
    learning_rate: float | Float[Array, ""],
) -> list[Array]:
    r"""One gradient step, summed over the batch, in alignment matrices alone.

    With `u_1 = A_1 x`, `u_l = A_l F_{l-1}^T F_{l-1} u_{l-1}` and `e = u_L - y`,

        A_1 <- A_1 - eta e x^T,    A_l <- A_l - eta e u_{l-1}^T,

    since the activity of layer `l` is `F_l u_l`.
    """
    u = [inputs @ A[0].T]  # [batch, C]
    for matrix, F in zip(A[1:], feedback, strict=True):
        u.append(u[-1] @ (matrix @ F.T @ F).T)
    errors = u[-1] - targets
    below = [inputs, *u[:-1]]
    return [a - learning_rate * errors.T @ x for a, x in zip(A, below, strict=True)]


def weights(A: Sequence[Array], feedback: Sequence[Float[Array, "_ C"]]) -> list[Array]:
    """`W_1 = F_1 A_1`, `W_l = F_l A_l F_{l-1}^T`, `W_L = A_L F_{L-1}^T`: the structure theorem."""
    C = feedback[0].shape[1]
    above = [*feedback, jnp.eye(C, dtype=feedback[0].dtype)]
    found = [above[0] @ A[0]]
    for matrix, below, F in zip(A[1:], feedback, above[1:], strict=True):
        found.append(F @ matrix @ below.T)
    return found


def train_step(
    W: Sequence[Array],
    feedback: Sequence[Float[Array, "_ C"]],
    inputs: Float[Array, "batch D"],
    targets: Float[Array, "batch C"],
    learning_rate: float | Float[Array, ""],
) -> list[Array]:
    """The same step in weights: `W_l <- W_l - eta F_l e h_{l-1}^T`, `F_L = 1`."""
    h = [inputs]
    for matrix in W:
        h.append(h[-1] @ matrix.T)
    errors = h[-1] - targets
    sent = [errors @ F.T for F in feedback] + [errors]
    return [
        matrix - learning_rate * delta.T @ below
        for matrix, delta, below in zip(W, sent, h[:-1], strict=True)
    ]


def direct_from_chain(backward: Sequence[Array]) -> list[Array]:
    """`F_l = B_{l+1} ... B_L`: feedback alignment's matrices seen as direct feedback.

    Args:
        backward: `B_2, ..., B_L`; `B_l` `[n_{l-1}, n_l]` carries the error from layer `l` down.
    """
    found = [backward[-1]]
    for B in reversed(backward[:-1]):
        found.insert(0, B @ found[0])
    return found


def trace_alignment(A: Float[Array, "C C"]) -> Float[Array, ""]:
    r"""`Tr(A_l) / (sqrt(C) |A_l|_F)`: the weight alignment of layer `l` if `F^T F` is the identity.

    It is 1 only where `A_l` is proportional to the identity.

    >>> round(trace_alignment(jnp.eye(2)).item(), 6)
    1.0
    """
    return jnp.trace(A) / (A.shape[0] ** 0.5 * jnp.linalg.norm(A))


def weight_alignments(
    W: Sequence[Array], feedback: Sequence[Float[Array, "_ C"]]
) -> list[Float[Array, ""]]:
    """`cos(W_l, F_l F_{l-1}^T)` for `l = 2, ..., L - 1` and `cos(W_L, F_{L-1}^T)`, as measured."""
    above = [*feedback[1:], jnp.eye(feedback[0].shape[1], dtype=feedback[0].dtype)]
    references = [F @ below.T for F, below in zip(above, feedback, strict=True)]
    return [
        jnp.vdot(matrix, reference) / (jnp.linalg.norm(matrix) * jnp.linalg.norm(reference))
        for matrix, reference in zip(W[1:], references, strict=True)
    ]


def early_exponent(layer: int) -> int:
    r"""Of the modes of `A_l` in the singular values `s` of the input-target covariance, early on.

    `a_l ~ t^(2^(l-1)) s^(2^(l-1))`: each layer squares the ill-conditioning of the one below, so
    low layers align first. (For `l = 1` the mode of `A_1` is `t s`.)

    >>> [early_exponent(layer) for layer in (1, 2, 3)]
    [1, 2, 4]
    """
    return 2 ** (layer - 1)


def converged_exponent(layer: int, num_layers: int) -> float:
    r"""The same at convergence: `a_l ~ s^(2^(l-1) / (2^L - 1))`, far better conditioned.

    >>> converged_exponent(2, num_layers=2)  # the product of both modes is s
    0.666...
    """
    return 2 ** (layer - 1) / (2**num_layers - 1)


def predicted_alignment(singular_values: Float[Array, " C"], exponent: float) -> Float[Array, ""]:
    """`trace_alignment` of a symmetric `A_l` with the modes `s^exponent`.

    Source: the exponents above, for feedback with `F^T F = 1`, white inputs, and gradient flow.
    """
    return trace_alignment(jnp.diag(singular_values**exponent))
