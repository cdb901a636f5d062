"""Order parameters for the tests."""

import jax
import numpy as np

from dfa_jax.theory import OrderParameters, draw_weights, from_weights


def fixture():
    """The regression fixture's start: K = M = 2, orthonormal teacher."""
    numbers = {
        "Q": [[1.0, 0.05], [0.05, 0.9]],
        "R": [[0.1, -0.05], [0.02, 0.08]],
        "T": [[1.0, 0.0], [0.0, 1.0]],
        "v": [0.4, -0.3],
        "v_teacher": [1.0, 1.0],
        "feedback": [1.0, -0.6],
    }
    return OrderParameters(**{name: jax.device_put(np.array(a)) for name, a in numbers.items()})


def drawn(seed, dim, *, v_teacher=(1.0, 1.0), feedback=(1.0, -0.6), scale=1.0):
    """Overlaps of networks drawn in float64."""
    key = jax.random.key(seed)
    ends = {"v_teacher": np.array(v_teacher), "feedback": np.array(feedback)}
    return from_weights(draw_weights(key, dim, **ends, scale=scale))
