"""Order parameters of a student network that learns from a teacher network, and their error."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from dfa_jax.errors import InputError
from dfa_jax.theory import activations
from dfa_jax.theory.activations import over_units


class OrderParameters(NamedTuple):
    r"""What the error depends on, in a space of D inputs; a leading time axis on all, or on none.

    With student weights `w_k`, teacher weights `b_m` and `lambda_k = w_k . x / sqrt D`,
    `rho_m = b_m . x / sqrt D`, the fields of an input `x ~ N(0, I)` have the covariance
    `[[Q, R], [R^T, T]]`.

    Attributes:
        Q: `w_k . w_l / D`, `[K, K]`.
        R: `w_k . b_m / D`, `[K, M]`.
        T: `b_m . b_n / D`, `[M, M]`.
        v: the student's second layer, `[K]`.
        v_teacher: the teacher's second layer, `[M]` (the `A` of the paper).
        feedback: the fixed feedback vector, `[K]` (its `F`).
    """

    Q: Float[Array, "*time K K"]
    R: Float[Array, "*time K M"]
    T: Float[Array, "*time M M"]
    v: Float[Array, "*time K"]
    v_teacher: Float[Array, "*time M"]
    feedback: Float[Array, "*time K"]


def covariance(op: OrderParameters) -> Float[Array, "*time N N"]:
    """`[[Q, R], [R^T, T]]` of the `N = K + M` fields, students first."""
    upper = jnp.concatenate([op.Q, op.R], -1)
    lower = jnp.concatenate([jnp.swapaxes(op.R, -1, -2), op.T], -1)
    return jnp.concatenate([upper, lower], -2)


def error_weights(op: OrderParameters) -> Float[Array, "*time N"]:
    """`u = (-v, A)`: the error of an input is `y - yhat = sum_a u_a g(field_a)`."""
    return jnp.concatenate([-op.v, op.v_teacher], -1)


@functools.partial(jax.jit, static_argnames="activation")
def generalization_error(op: OrderParameters, activation: str) -> Float[Array, "*time"]:
    r"""`e_g = (1/2) E[(y - yhat)^2] = (1/2) sum_ab u_a u_b I2(a, b)`, label noise left out.

    With the factor 1/2, as in Saad and Solla (1995); the paper's simulation logs it without.

    >>> zero, one = jnp.zeros((1, 1)), jnp.ones((1, 1))
    >>> op = OrderParameters(zero, zero, one, zero[0], one[0], one[0])
    >>> round(generalization_error(op, "erf").item(), 6)  # asin(1/2) / pi
    0.166667
    """
    I2 = activations.get(activation).I2

    def one(op: OrderParameters) -> Float[Array, ""]:
        C, u = covariance(op), error_weights(op)
        units = range(C.shape[0])
        return 0.5 * u @ over_units(I2, C, units, units) @ u

    return over_time(one, op)


def overlap(op: OrderParameters) -> Float[Array, "*time"]:
    """`cos(v, F)`, the alignment of the second layer with the feedback; 0 where `v = 0`."""
    inner = (op.v * op.feedback).sum(-1)
    norms = jnp.linalg.norm(op.v, axis=-1) * jnp.linalg.norm(op.feedback, axis=-1)
    return jnp.where(norms > 0, inner / jnp.where(norms > 0, norms, 1), 0)


def over_time(function: Any, op: OrderParameters) -> Any:
    """A function of order parameters at one time, at each time if there are several."""
    for _ in range(op.v.ndim - 1):
        function = jax.vmap(function)
    return function(op)


def check(op: OrderParameters) -> None:
    """Refuses order parameters (at one time) that no pair of networks has.

    Raises:
        InputError: an array has another shape than `[K]`, `[M]` and their products, or the
            covariance is not symmetric and positive semi-definite. Values are looked at only where
            they are known, so not under `jax.jit`.
    """
    if op.v.ndim != 1 or op.v_teacher.ndim != 1:
        raise InputError(
            f"v has shape {op.v.shape} and v_teacher {op.v_teacher.shape}; expected [K] and [M], at"
            " one time"
        )
    K, M = len(op.v), len(op.v_teacher)
    expected = {"Q": (K, K), "R": (K, M), "T": (M, M), "feedback": (K,)}
    for name, shape in expected.items():
        if getattr(op, name).shape != shape:
            raise InputError(
                f"{name} has shape {getattr(op, name).shape}; with K = {K} students (v) and M = {M}"
                f" teachers (v_teacher) it is {shape}"
            )
    if any(isinstance(leaf, Tracer) for leaf in op):
        return
    C = np.block([[np.asarray(op.Q), np.asarray(op.R)], [np.asarray(op.R).T, np.asarray(op.T)]])
    C = C.astype(np.float64)
    if not np.isfinite(C).all():
        raise InputError("Q, R or T has entries that are not finite")
    tolerance = 100 * float(jnp.finfo(op.Q.dtype).eps) * max(np.abs(C).max(), 1.0)
    if np.abs(C - C.T).max() > tolerance:
        raise InputError("Q or T is not symmetric; they are products of weights with themselves")
    lowest = np.linalg.eigvalsh(C)[0]
    if lowest < -tolerance * len(C):
        raise InputError(
            f"the covariance [[Q, R], [R^T, T]] has the eigenvalue {lowest:.3g}; no weights have"
            " such overlaps, make it positive semi-definite (as `from_weights` does)"
        )
