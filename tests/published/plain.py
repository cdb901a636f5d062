"""A published model without the library: what its user would write, the reference of the tests.

Other backward passes are written at the level of Flax's modules, by `nn.intercept_methods`; the library
has them at the level of the traced program.
"""

import flax.linen as nn
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


def apply(model, params, state, key=None, train=True):
    """The outputs, and the state of the next step."""
    streams = dict.fromkeys(model.train_streams, jax.random.key(2) if key is None else key)
    outputs = model.module.apply(
        {"params": params, **state},
        model.inputs,
        train,
        method=model.call,
        rngs=streams if train else {},
        mutable=list(model.state) if train else False,
    )
    return outputs if train else (outputs, state)


def objective(model, params, state, key=None, train=True):
    """The scalar that `jax.grad` differentiates, the outputs, and the state of the next step."""
    outputs, state = apply(model, params, state, key, train)
    values, weights, extra = model.loss(outputs, model.targets)
    return mean(values, weights) + (0.0 if extra is None else extra), (outputs, state)


def with_feedback(model, params, state, key, feedback):
    """The objective, whose errors come back through other kernels, by the path of their module.

    A tied readout is a module of its own, which is called on the embedding: its path is empty.
    """
    inside = []

    def intercept(call, arguments, options, context):
        module = context.module
        is_tied = not module.path and isinstance(module, nn.Dense)
        kernel = feedback.get(model.tied if is_tied else "/".join(module.path))
        if kernel is None or inside or context.method_name != "__call__":
            return call(*arguments, **options)
        own = jax.tree.map(jax.lax.stop_gradient, dict(module.variables["params"]))
        constants = {"params": own | {"kernel": kernel.T if is_tied else kernel}}
        inside.append(module)
        back = module.clone(parent=None, name=None).apply(constants, *arguments)
        inside.pop()
        given = jax.tree.map(jax.lax.stop_gradient, arguments)
        return call(*given, **options) + back - jax.lax.stop_gradient(back)

    with nn.intercept_methods(intercept):
        return objective(model, params, state, key)


def with_errors(model, params, state, key, errors, heads=None):
    """The objective cut behind every site, and what sends each its error, by the site's path.

    With `heads`, a linear one for each site, also the losses of outputs that these stand in for.
    """
    seen = {}

    def intercept(call, arguments, options, context):
        found, path = call(*arguments, **options), "/".join(context.module.path)
        if path not in model.sites or context.method_name != "__call__":
            return found
        seen[path] = leaf(found, model.sites[path])
        return replaced(found, model.sites[path], jax.lax.stop_gradient(seen[path]))

    with nn.intercept_methods(intercept):
        total, (outputs, state) = objective(model, params, state, key)
    sent = [jnp.vdot(seen[path], jax.lax.stop_gradient(error)) for path, error in errors.items()]
    local = [_head_loss(model, outputs, seen[path], head) for path, head in (heads or {}).items()]
    return total + sum(sent) + sum(local), (outputs, state)


def leaf(tree, name):
    """The leaf of this name, as `jax.tree_util.keystr` writes it."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): value for path, value in leaves}[name]


def replaced(tree, name, value):
    """The tree with another leaf of this name."""

    def one(path, old):
        return value if jax.tree_util.keystr(path) == name else old

    return jax.tree_util.tree_map_with_path(one, tree)


def _head_loss(model, outputs, h, head):
    logits = leaf(outputs, model.tap)
    pooled = h.mean(tuple(range(logits.ndim - 1, h.ndim - 1)))
    outputs = jax.tree.map(jax.lax.stop_gradient, outputs)
    outputs = replaced(outputs, model.tap, pooled @ head["kernel"] + head["bias"])
    return mean(*model.loss(outputs, model.targets)[:2])


def mean(values, weights):
    """Of the values, by weight."""
    weights = jnp.ones_like(values) if weights is None else weights
    return jnp.sum(weights * values) / jnp.sum(weights)


def _keys(names, seed):
    return {name: jax.random.key(seed + number) for number, name in enumerate(names)}
