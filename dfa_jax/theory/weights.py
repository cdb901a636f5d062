"""Student and teacher as weights, and online gradient descent on them, input by input.

It knows nothing of order parameters' dynamics, so it is an oracle for `ode` and `simulation`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from dfa_jax.errors import InputError
from dfa_jax.theory import activations
from dfa_jax.theory.clock import check_times, run_until, steps_at
from dfa_jax.theory.order_parameters import OrderParameters
from dfa_jax.theory.setup import TeacherStudent


class Weights(NamedTuple):
    """A student, its teacher, and the feedback.

    Attributes:
        w: the student's first layer, `[K, D]`.
        v: its second, `[K]`.
        teacher: the teacher's first layer, `[M, D]`.
        v_teacher: its second, `[M]`.
        feedback: `[K]`.
    """

    w: Float[Array, "K D"]
    v: Float[Array, " K"]
    teacher: Float[Array, "M D"]
    v_teacher: Float[Array, " M"]
    feedback: Float[Array, " K"]


def draw_weights(
    key: PRNGKeyArray,
    dim: int,
    *,
    v_teacher: Float[Array, " M"] | np.ndarray,
    feedback: Float[Array, " K"] | np.ndarray,
    scale: float = 1.0,
) -> Weights:
    """Teacher weights from N(0, 1), student weights of both layers from N(0, scale^2).

    The feedback is given and not drawn: the paper's runs share one.
    """
    teacher, feedback = jnp.asarray(v_teacher), jnp.asarray(feedback)
    if teacher.ndim != 1 or feedback.ndim != 1 or dim < len(teacher) + len(feedback):
        raise InputError(
            f"v_teacher has shape {teacher.shape}, feedback {feedback.shape}, and there are {dim}"
            " inputs; expected [M], [K], and at least K + M inputs"
        )
    dtype = jnp.result_type(teacher, feedback, jnp.float32)
    keys = jax.random.split(key, 3)
    K, M = len(feedback), len(teacher)
    return Weights(
        w=scale * jax.random.normal(keys[0], (K, dim), dtype),
        v=scale * jax.random.normal(keys[1], (K,), dtype),
        teacher=jax.random.normal(keys[2], (M, dim), dtype),
        v_teacher=teacher.astype(dtype),
        feedback=feedback.astype(dtype),
    )


def from_weights(weights: Weights) -> OrderParameters:
    """The order parameters of a pair of networks."""
    w, teacher, dim = weights.w, weights.teacher, weights.w.shape[1]
    return OrderParameters(
        Q=w @ w.T / dim,
        R=w @ teacher.T / dim,
        T=teacher @ teacher.T / dim,
        v=weights.v,
        v_teacher=weights.v_teacher,
        feedback=weights.feedback,
    )


def simulate_weights(
    key: PRNGKeyArray,
    setup: TeacherStudent,
    weights: Weights,
    times: Float[Array, " time"] | np.ndarray,
) -> OrderParameters:
    """Runs online gradient descent and reports the order parameters at `times`.

    A time `t` is reached after `round(t D)` steps, one fresh input each; the first must be 0.
    `jax.vmap` over keys, weights, or both runs many at once. `simulation.simulate` does the same in
    distribution, without drawing inputs or weights.

    Returns:
        The order parameters at `times` on a leading axis, as `ode.solve` gives them.

    Raises:
        InputError: `times` do not ascend, or arrays of `weights` disagree on K, M or D.
    """
    check_times(times)
    _check_weights(weights)
    return _run(key, setup, weights, steps_at(times, weights.w.shape[1]))


@jax.jit
def _run(
    key: PRNGKeyArray, setup: TeacherStudent, weights: Weights, steps: Int32[Array, " time"]
) -> OrderParameters:
    step = functools.partial(online_step, key, setup)
    return run_until(step, weights, steps, from_weights)


def online_step(
    key: PRNGKeyArray, setup: TeacherStudent, number: int | Array, weights: Weights
) -> Weights:
    """One step of `TeacherStudent`'s equations, on the input that belongs to its number."""
    g = activations.get(setup.activation)
    w, v = weights.w, weights.v
    dim, dtype = w.shape[1], w.dtype
    x_key, noise_key = jax.random.split(jax.random.fold_in(key, number))
    x = jax.random.normal(x_key, (dim,), dtype)
    noise = setup.label_noise * jax.random.normal(noise_key, (), dtype)
    fields = w @ x / dim**0.5
    targets = weights.v_teacher @ g.g(weights.teacher @ x / dim**0.5) + noise
    error = targets - v @ g.g(fields)
    F = v if setup.rule == "backprop" else weights.feedback
    push = setup.learning_rate / dim**0.5 * error * F * g.derivative(fields)
    kept, kept_v = (
        1 - rate * setup.weight_decay / dim
        for rate in (setup.learning_rate, setup.second_learning_rate)
    )
    return weights._replace(
        w=kept * w + jnp.outer(push, x),
        v=kept_v * v + setup.second_learning_rate / dim * error * g.g(fields),
    )


def _check_weights(weights: Weights) -> None:
    """Refuses arrays that disagree; a leading axis belongs to `jax.vmap`."""
    (K, D), M = weights.w.shape, len(weights.v_teacher)
    expected = {"v": (K,), "teacher": (M, D), "v_teacher": (M,), "feedback": (K,)}
    for name, shape in expected.items():
        if getattr(weights, name).shape != shape:
            raise InputError(
                f"{name} has shape {getattr(weights, name).shape}; with w [{K}, {D}] and M = {M} it"
                f" is {shape}"
            )
