"""Batch statistics under every rule: one pass of a batch moves them, whichever way its gradient is found."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.losses import softmax_cross_entropy
from dfa_jax.models import from_linen
from dfa_jax.rules import RULES, functional
from tests import helpers


class Normalised(nn.Module):
    """Two layers with batch statistics behind each."""

    @nn.compact
    def __call__(self, x, train: bool):
        for i in range(2):
            h = nn.Dense(5, name=f"layer_{i}")(x)
            x = jnp.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.9)(h))
        return nn.Dense(3, name="readout")(x)


EVERY_DAY = ("direct_feedback_alignment", "activity_forward_gradient")


@pytest.mark.parametrize(
    "name", [n if n in EVERY_DAY else pytest.param(n, marks=pytest.mark.slow) for n in RULES]
)
def test_statistics_move_once_a_batch(name):
    """Independent implementation: the running mean by NumPy, `0.9 m + 0.1 mean`, from the first layer's
    activities. A rule of several passes must not move it twice, nor forget it."""
    batch = helpers.images()
    model = from_linen(Normalised(), "layer_*", batch.inputs)
    rule = RULES[name]()

    @jax.jit
    def run(batch):
        start = functional.init(rule, model, softmax_cross_entropy, jax.random.key(0), batch)
        old = jax.tree.map(lambda leaf: leaf + 1, start.model_state)
        estimate = functional.value_and_grad(rule, model, softmax_cross_entropy)
        given = (start.params, start.rule_state, old, batch, jax.random.key(1))
        return start.params, estimate(*given)[0][1].model_state

    params, state = jax.device_get(run(batch))
    layer = params["layer_0"]
    h = np.asarray(batch.inputs) @ layer["kernel"] + layer["bias"]
    found = state["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], 0.9 + 0.1 * h.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["var"], 1.8 + 0.1 * h.var(0), rtol=1e-5)
