r"""The order parameters' equations of motion in the limit of many inputs, and their solution.

Source: Refinetti et al. (2021), arXiv 2011.12428, appendix; for backpropagation Goldt et al.
(2019), arXiv 1906.08632, and with a fixed second layer Saad and Solla (1995).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dfa_jax.errors import require
from dfa_jax.theory import activations, order_parameters
from dfa_jax.theory.activations import over_units
from dfa_jax.theory.clock import check_times
from dfa_jax.theory.order_parameters import OrderParameters
from dfa_jax.theory.setup import TeacherStudent

MAX_STEPS = 1_000_000


def velocity(op: OrderParameters, setup: TeacherStudent) -> OrderParameters:
    r"""The time derivative of the order parameters, at one time.

    With `u = (-v, A)` over all units, `Z_ia = sum_b u_b I3(i, a, b)`, and `F = v` under
    backpropagation,

        dR_im = eta F_i Z_im                                    - eta kappa R_im
        dQ_ik = eta (F_i Z_ik + F_k Z_ki)
              + eta^2 F_i F_k (sum_ab u_a u_b I4(i, k, a, b) + sigma^2 J2(i, k))
                                                                - 2 eta kappa Q_ik
        dv_i  = eta_v sum_a u_a I2(i, a)                        - eta_v kappa v_i

    and `T`, `A` and the feedback stay.
    """
    g = activations.get(setup.activation)
    C, u = order_parameters.covariance(op), order_parameters.error_weights(op)
    K = op.v.shape[0]
    students, units = range(K), range(C.shape[0])
    F = op.v if setup.rule == "backprop" else op.feedback
    eta, decay = setup.learning_rate, setup.weight_decay

    Z = over_units(g.I3, C, students, units, units) @ u  # [K, N]
    I4 = over_units(g.I4, C, students, students, units, units)
    spread = I4 @ u @ u + setup.label_noise**2 * over_units(g.J2, C, students, students)
    drift = F[:, None] * Z[:, :K]
    dQ = eta * (drift + drift.T) + eta**2 * jnp.outer(F, F) * spread - 2 * eta * decay * op.Q
    dR = eta * F[:, None] * Z[:, K:] - eta * decay * op.R
    dv = setup.second_learning_rate * (over_units(g.I2, C, students, units) @ u - decay * op.v)
    fixed = jax.tree.map(jnp.zeros_like, op)
    return fixed._replace(Q=dQ, R=dR, v=dv)


def solve(
    op0: OrderParameters,
    setup: TeacherStudent,
    times: Float[Array, " time"] | np.ndarray,
    *,
    step_size: float | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-9,
) -> OrderParameters:
    """Integrates the equations of motion from `times[0]` on, by Tsitouras' method of order 5.

    Differentiable by `op0` and by the numbers in `setup`; `jax.vmap` runs many at once.

    Args:
        op0: at `times[0]`.
        setup: the setting.
        times: ascending, in steps per input dimension.
        step_size: of fixed steps; adaptive ones without it.
        rtol: relative tolerance of a step, if adaptive.
        atol: absolute tolerance of a step, if adaptive.

    Returns:
        The order parameters at `times`, on a leading axis.

    Raises:
        InputError: `op0` is not one of a pair of networks, or `times` do not ascend.
    """
    require("theory", "theory.solve", "diffrax")
    import diffrax  # slow to import

    order_parameters.check(op0)
    check_times(times)
    times = jnp.asarray(times, op0.Q.dtype)
    if step_size is None:
        controller, first = diffrax.PIDController(rtol=rtol, atol=atol), None
    else:
        controller, first = diffrax.ConstantStepSize(), step_size
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(_rates),
        diffrax.Tsit5(),
        times[0],
        times[-1],
        first,
        {"Q": op0.Q, "R": op0.R, "v": op0.v},
        args=(op0, setup),
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=controller,
        max_steps=MAX_STEPS,
    )
    still = {
        name: jnp.broadcast_to(getattr(op0, name), (len(times), *getattr(op0, name).shape))
        for name in ("T", "v_teacher", "feedback")
    }
    moved: Any = found.ys
    return OrderParameters(**moved, **still)


def _rates(t: Any, y: Any, args: tuple[OrderParameters, TeacherStudent]) -> Any:
    """`velocity` as Diffrax wants it; one function for all calls, so that compilations are kept."""
    del t  # the equations do not change with time
    fixed, setup = args
    moving = velocity(fixed._replace(**y), setup)
    return {name: getattr(moving, name) for name in y}
