r"""Online gradient descent in D dimensions, simulated through its order parameters.

With Gaussian inputs, a step changes the order parameters through the fields `f ~ N(0, C)` and
`|x|^2` alone, so they are a Markov chain: no weight and no input need be drawn. With `C = L L^T`
and `f = L z`, the part of `x` within the span of all weights has the squared length `|z|^2`, and
the rest is a chi-squared number with `D - N` degrees of freedom. It is the same process as
`weights.simulate_weights`, not an approximation of it for large D.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from dfa_jax.errors import InputError
from dfa_jax.theory import activations, order_parameters
from dfa_jax.theory.clock import check_times, run_until, steps_at
from dfa_jax.theory.gaussian import factor
from dfa_jax.theory.order_parameters import OrderParameters
from dfa_jax.theory.setup import TeacherStudent


def simulate(
    key: PRNGKeyArray,
    setup: TeacherStudent,
    op0: OrderParameters,
    dim: int,
    times: Float[Array, " time"] | np.ndarray,
) -> OrderParameters:
    """Runs online gradient descent and reports the order parameters at `times`.

    A time `t` is reached after `round(t D)` steps, one fresh input each. `jax.vmap` over keys,
    order parameters, or both runs many at once.

    Args:
        key: of the inputs and of the label noise.
        setup: the setting.
        op0: at step 0; those of weights as `weights.from_weights` gives them.
        dim: number of inputs, `D`.
        times: ascending, in steps per input dimension.

    Returns:
        The order parameters at `times` on a leading axis, as `ode.solve` gives them.

    Raises:
        InputError: `op0` is not one of a pair of networks, `times` do not ascend, or there are
            fewer inputs than units.
    """
    order_parameters.check(op0)
    check_times(times)
    num_units = len(op0.v) + len(op0.v_teacher)
    if dim <= num_units:
        raise InputError(
            f"dim is {dim} with {num_units} units; expected more inputs than students and teachers"
        )
    return _run(key, setup, op0, steps_at(times, dim), dim=dim)


@functools.partial(jax.jit, static_argnames="dim")
def _run(
    key: PRNGKeyArray,
    setup: TeacherStudent,
    op0: OrderParameters,
    steps: Int32[Array, " time"],
    *,
    dim: int,
) -> OrderParameters:
    step = functools.partial(online_step, key, setup, dim)
    return run_until(step, op0, steps, lambda op: op)


def online_step(
    key: PRNGKeyArray, setup: TeacherStudent, dim: int, number: Any, op: OrderParameters
) -> OrderParameters:
    """One step of `TeacherStudent`'s equations, in order parameters."""
    g = activations.get(setup.activation)
    C = order_parameters.covariance(op)
    K, N = op.v.shape[0], C.shape[0]
    drawn = jax.random.normal(jax.random.fold_in(key, number), (N + 2,), C.dtype)
    z, outside, noise = drawn[:N], drawn[N], drawn[N + 1]
    fields = factor(C) @ z
    square = (z @ z + chi_squared(outside, dim - N)) / dim  # |x|^2 / D
    error = order_parameters.error_weights(op) @ g.g(fields) + setup.label_noise * noise
    F = op.v if setup.rule == "backprop" else op.feedback
    push = setup.learning_rate * error * F * g.derivative(fields[:K])
    kept, kept_v = (
        1 - rate * setup.weight_decay / dim
        for rate in (setup.learning_rate, setup.second_learning_rate)
    )
    along = kept * jnp.outer(push, fields) / dim  # [K, N]
    Q = kept**2 * op.Q + along[:, :K] + along[:, :K].T + jnp.outer(push, push) * square / dim
    v = kept_v * op.v + setup.second_learning_rate / dim * error * g.g(fields[:K])
    return op._replace(Q=Q, R=kept * op.R + along[:, K:], v=v)


def chi_squared(normal: Float[Array, ""], degrees: int) -> Float[Array, ""]:
    r"""A chi-squared number from a normal one, by Wilson and Hilferty's cube (1931).

    `n (1 - a + sqrt(a) z)^3` with `a = 2 / (9 n)`. Its mean is off by the factor `a^3`, its
    standard deviation by less than 3e-4 from 6 degrees and 3e-6 from 60 degrees on.
    """
    a = 2 / (9 * degrees)
    return degrees * (1 - a + a**0.5 * normal) ** 3
