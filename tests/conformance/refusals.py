"""All that may be refused, each as somebody meets it: the page of the docs quotes what is said."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfa_jax.models import MLP, from_linen
from dfa_jax.rules import RULES, functional
from dfa_jax.types import Batch
from tests import helpers
from tests.conformance import zoo

X = jnp.ones((4, 5))


def start(rule: str, model, loss=helpers.LOSS, targets=None):
    """Parameters and states, or the refusal."""
    batch = Batch(X, jnp.zeros(4, int) if targets is None else targets)
    functional.init(RULES[rule](), model, loss, jax.random.key(0), batch)


class LayerScale(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Dense(4, name="first")(x) * self.param("gamma", nn.initializers.ones, (1, 4))
        return nn.Dense(3, name="readout")(jnp.tanh(h))


class RawLoop(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(5, name="layer")
        h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(layer(h)), None), x, length=3)
        return nn.Dense(3, name="readout")(h)


class TwoHeads(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = jnp.tanh(nn.Dense(4, name="first")(x))
        return {"logits": nn.Dense(3)(h), "value": nn.Dense(1)(h)}


class TwoArrays(nn.Module):
    @nn.compact
    def __call__(self, x):
        h, _ = zoo.Block(name="block")(nn.Dense(8)(x)[:, None], True)
        return nn.Dense(3, name="readout")(h[:, 0])


class Latents(nn.Module):
    """A learned array that is transformed, as long as a batch may be."""

    @nn.compact
    def __call__(self, x):
        start = self.param("start", nn.initializers.normal(1.0), (4, 3))
        latents = jnp.tanh(nn.Dense(5, name="latents")(start))
        return nn.Dense(3, name="readout")(x @ latents.T)


REFUSALS: dict[str, tuple[str, Callable[[], object]]] = {
    "a chain rule, where an error passes a parameter that is neither in a product nor accepted": (
        "passes the parameters 'gamma'",
        lambda: start("feedback_alignment", from_linen(LayerScale(), "first", X)),
    ),
    "a site inside a loop that Flax does not lift": (
        "inside a raw JAX transform",
        lambda: from_linen(RawLoop(), "layer", X),
    ),
    "a site of several arrays, none of them named": (
        "has 2 floating-point arrays",
        lambda: from_linen(TwoArrays(), "block", X),
    ),
    "several outputs, none of them tapped, where a rule reads an error": (
        "2 outputs of floating-point numbers",
        lambda: start(
            "direct_feedback_alignment",
            from_linen(TwoHeads(), "first", X),
            lambda outputs, targets: helpers.LOSS(outputs["logits"], targets),
        ),
    ),
    "direct feedback, or a local loss, at an array that has not the examples in front": (
        "whose first axis is not that of the examples",
        lambda: start("direct_feedback_alignment", from_linen(Latents(), "latents", X)),
    ),
    "positions, or examples, declared independent under batch statistics": (
        "BatchNorm, whose statistics couple",
        lambda: from_linen(zoo.ResNet(), "block_*", jnp.ones((2, 5, 5, 2)), independent_axes=1),
    ),
    "targets that are no classes under `direct_random_target_projection`": (
        "projects integer labels",
        lambda: start(
            "direct_random_target_projection",
            from_linen(MLP((4,), 3), "layer_0", X),
            lambda outputs, targets: jnp.square(outputs - targets),
            jnp.ones((4, 3)),
        ),
    ),
    "a loss that cannot be differentiated": (
        "expected real floating-point numbers",
        lambda: start(
            "backprop",
            from_linen(MLP((4,), 3), "layer_0", X),
            lambda outputs, targets: (outputs.argmax(-1) != targets).astype(int),
        ),
    ),
}
