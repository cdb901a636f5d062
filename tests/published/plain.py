"""A published model without the library: what its user would write, the reference of the tests."""

import jax
import jax.numpy as jnp


def draw(model, seed=0):
    """Parameters, none at rest, and state.

    Some authors begin with zeros (the last scale of a residual block, biases), which hide the
    gradient of all that is behind them.
    """
    streams = _keys(("params", *model.train_streams), seed)
    drawn = dict(model.module.init(streams, model.inputs, True, method=model.call))
    leaves, tree = jax.tree.flatten(drawn.pop("params"))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    moved = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved), drawn


def apply(model, params, state, seed=2, train=True):
    """The outputs, and the state of the next step."""
    outputs = model.module.apply(
        {"params": params, **state},
        model.inputs,
        train,
        method=model.call,
        rngs=_keys(model.train_streams, seed) if train else {},
        mutable=list(model.state) if train else False,
    )
    return outputs if train else (outputs, state)


def objective(model, params, state, seed=2, train=True):
    """The scalar that `jax.grad` differentiates, the outputs, and the state of the next step."""
    outputs, state = apply(model, params, state, seed, train)
    values, weights, extra = model.loss(outputs, model.targets)
    weights = jnp.ones_like(values) if weights is None else weights
    mean = jnp.sum(weights * values) / jnp.sum(weights)
    return mean + (0.0 if extra is None else extra), (outputs, state)


def _keys(names, seed):
    return {name: jax.random.key(seed + number) for number, name in enumerate(names)}
