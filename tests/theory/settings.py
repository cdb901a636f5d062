"""Order parameters for the tests."""

import jax
import jax.numpy as jnp
import numpy as np

from dfa_jax.theory import OrderParameters, draw_weights, from_weights


def fixture():
    """The regression fixture's start: K = M = 2, orthonormal teacher."""
    return OrderParameters(
        Q=jnp.array([[1.0, 0.05], [0.05, 0.9]]),
        R=jnp.array([[0.1, -0.05], [0.02, 0.08]]),
        T=jnp.eye(2),
        v=jnp.array([0.4, -0.3]),
        v_teacher=jnp.ones(2),
        feedback=jnp.array([1.0, -0.6]),
    )


def drawn(seed, dim, *, v_teacher=(1.0, 1.0), feedback=(1.0, -0.6), scale=1.0):
    """Overlaps of networks drawn in float64."""
    key = jax.random.key(seed)
    ends = {"v_teacher": np.array(v_teacher), "feedback": np.array(feedback)}
    return from_weights(draw_weights(key, dim, **ends, scale=scale))
