"""What each rule must find, written out without the library: `jax.grad`, NumPy, and its definition.

Of the library only the names of directions (`autodiff.forward.direction`) are used: a forward gradient
is checked for one known direction, exactly.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dfa_jax import rules
from dfa_jax.autodiff import forward
from dfa_jax.keys import named_key
from dfa_jax.types import Loss
from tests.conformance import zoo

KEY = jax.random.key(5)
FORWARD_KEY, RULE_KEY = jax.random.split(KEY)
DRAW_KEY = jax.random.fold_in(RULE_KEY, 0)
WEIGHTS = np.array([1.0, 0.5, 0.0, 2.0, 1.0, 1.0], np.float32)
EXTRA = 0.25


def rule(name: str) -> Any:
    """The rule in the form whose definition is checked."""
    options = {
        "kolen_pollack": {"decay": 0.0},
        "activity_forward_gradient": {"noise": "rademacher"},
        "weight_forward_gradient": {"noise": "rademacher"},
    }
    return rules.RULES[name](**options.get(name, {}))


def weights_of(kind: zoo.Kind, targets: Any, shape: tuple[int, ...]) -> Any:
    """Those among the targets, or some for the examples."""
    if isinstance(targets, dict) and "weights" in targets:
        return targets["weights"]
    each = jnp.resize(WEIGHTS, shape[0])
    return jnp.broadcast_to(each.reshape(-1, *(1,) * (len(shape) - 1)), shape)


def first_output(outputs: Any) -> Any:
    return jax.tree.leaves(outputs)[0]


def loss_of(kind: zoo.Kind, form: str) -> Any:
    """What a user would write, in one of the forms that the table has."""

    def loss(outputs, targets):
        values = kind.values(outputs, targets)
        return {
            "one a row": lambda: values,
            "one an example": lambda: values.reshape(len(values), -1).mean(1),
            "a scalar": values.mean,
            "entry by entry": lambda: jnp.stack([0.5 * values, 1.5 * values], -1),
            "weighted": lambda: Loss(values, weights_of(kind, targets, values.shape)),
            "weighted, and more": lambda: Loss(
                values,
                weights_of(kind, targets, values.shape),
                EXTRA * jnp.square(first_output(outputs)).mean(),
            ),
        }[form]()

    return loss


FORMS = (
    "one a row",
    "one an example",
    "a scalar",
    "entry by entry",
    "weighted",
    "weighted, and more",
)


def objective_of(kind: zoo.Kind, form: str, outputs: Any, targets: Any) -> tuple[Any, Any]:
    """The scalar that the loss means: what examples add, `[rows]`, and what belongs to none."""
    values = kind.values(outputs, targets)
    weights = jnp.ones_like(values)
    if form.startswith("weighted"):
        weights = weights_of(kind, targets, values.shape)
    shared = jnp.zeros(())
    if form == "weighted, and more":
        shared = EXTRA * jnp.square(first_output(outputs)).mean()
    return weights * values / weights.sum(), shared


class Reference(NamedTuple):
    """Numbers of one pass by `module.apply`, and derivatives by `jax.grad`."""

    loss: Any
    outputs: Any
    state: Any
    grads: Any
    tap_error: Any
    site_errors: Any
    own_errors: Any
    shares: Any


def reference(name: str, form: str) -> Reference:
    """By the module itself, with an interceptor of the test's own for the sites."""
    case = zoo.made(name)
    kind, model = case.kind, case.model
    streams = streams_of(case)

    def forward_pass(params, moves, batch):
        variables = {"params": params, **(case.state or {})}
        mutable = [*case.state, "losses"]
        with nn.intercept_methods(functools.partial(move, moves)):
            outputs, mutated = kind.module.apply(
                variables, batch.inputs, True, rngs=streams, mutable=mutable, method=call_of(kind)
            )
        return outputs, dict(mutated)

    def parts(params, moves, batch):
        outputs, mutated = forward_pass(params, moves, batch)
        each, shared = objective_of(kind, form, outputs, batch.targets)
        if kind.options.get("auxiliary"):
            shared += sum(jnp.sum(leaf) for leaf in jax.tree.leaves(mutated.get("losses", {})))
        mutated.pop("losses", None)
        return each, shared, outputs, mutated

    def of_outputs(outputs, batch):
        each, shared = objective_of(kind, form, outputs, batch.targets)
        return each.sum() + shared

    def total(params, moves, batch):
        each, shared, outputs, mutated = parts(params, moves, batch)
        return each.sum() + shared, (outputs, mutated)

    def own(moves, params, batch):
        return parts(params, moves, batch)[0].sum()

    def run(params, batch):
        shapes = jax.eval_shape(lambda p: recorded(kind, model, forward_pass, p, batch), params)
        zeros = {site: jnp.zeros(a.shape, a.dtype) for site, a in shapes.items()}
        (loss, (outputs, mutated)), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(
            params, zeros, batch
        )
        tap_error = jax.grad(of_outputs)(outputs, batch)
        own_errors = jax.grad(own)(zeros, params, batch)
        values = kind.values(outputs, batch.targets)
        weights = jnp.ones_like(values)
        if form.startswith("weighted"):
            weights = weights_of(kind, batch.targets, values.shape)
        shares = weights / weights.sum()
        return Reference(loss, outputs, mutated, grads[0], tap_error, grads[1], own_errors, shares)

    return run


def call_of(kind: zoo.Kind) -> Any:
    """How the module is called in training."""
    if "call" in kind.options:
        return kind.options["call"]
    flags = {zoo.ResNet: {"train": True}, zoo.ViT: {"deterministic": False}}

    def call(module, inputs, train):
        del train
        return module(inputs, **flags.get(type(kind.module), {}))

    return call


def split_site(site: str) -> tuple[str, str, str]:
    """Submodule, place and leaf of a site's name."""
    owner, *rest = site.split(":")
    place = rest.pop(0) if rest[:1] == ["input"] else "output"
    return owner, place, rest[0] if rest else ""


def move(moves, next_fun, args, kwargs, context):
    """Adds to the value at a site, or notes it if the move is a list."""
    here = "/".join(context.module.path)
    if context.method_name != "__call__":
        return next_fun(*args, **kwargs)
    for site, by in moves.items():
        owner, place, leaf = split_site(site)
        if owner == here and place == "input":
            kwargs = kwargs | {leaf: shifted(kwargs[leaf], by)}
    outputs = next_fun(*args, **kwargs)
    for site, by in moves.items():
        owner, place, leaf = split_site(site)
        if owner != here or place != "output" or is_inner(context.module):
            continue
        if leaf:
            values = list(outputs)
            values[int(leaf)] = shifted(values[int(leaf)], by)
            outputs = tuple(values)
        else:
            outputs = shifted(outputs, by)
    return outputs


def is_inner(module):
    """Whether it is the dense map inside a `LoRA`, which shares the scope of that."""
    return isinstance(module, nn.Dense) and isinstance(module.parent, zoo.LoRA)


def shifted(value, by):
    if isinstance(by, list):
        by.append(value)
        return jax.lax.stop_gradient(value) if isinstance(by, Cut) else value
    return value + by


def recorded(kind, model, forward_pass, params, batch):
    """Activities at the sites."""
    notes = {site: [] for site in model.sites}
    forward_pass(params, notes, batch)
    return {site: note[0] for site, note in notes.items()}


def rows_of(error: Any, case: zoo.Case) -> Any:
    """The errors of the tapped outputs as one vector a row."""
    leaves = jax.tree.leaves(error)
    if case.kind.options.get("tap") == "logits":
        leaves = [error["logits"]]
    axes = case.model.batch_axes
    return jnp.concatenate([e.reshape(*e.shape[:axes], -1) for e in leaves], -1)


def projected(signal: Any, B: Any) -> Any:
    return jnp.tensordot(signal, B, 1)


def expected_errors(
    name: str, kind: str, form: str, found: Reference, state: Any, batch: Any
) -> Any:
    """`delta_l` of the rules that send errors, by their definitions."""
    case = zoo.made(kind)
    e = rows_of(found.tap_error, case)
    if name == "shallow":
        return {site: jnp.zeros_like(g) for site, g in found.site_errors.items()}
    if name == "direct_feedback_alignment":
        return {site: projected(e, B) for site, B in state.items()}
    if name == "direct_random_target_projection":
        targets = batch.targets
        if isinstance(targets, dict):
            targets = targets.get("labels", targets.get("actions"))
        hot = jax.nn.one_hot(targets, e.shape[-1]) * found.shares[..., None]
        return {site: projected(hot, B) for site, B in state.items()}
    if name == "activity_forward_gradient":
        return slopes_times_noise(case, form, found)
    return found.site_errors  # backprop


def slopes_times_noise(case: zoo.Case, form: str, found: Reference) -> Any:
    """`(s_b + s) u_b`: the slope of an example's own part, and of what belongs to none."""
    apart = form != "a scalar" and "ResNet" not in type(case.kind.module).__name__
    shapes = found.site_errors
    u = {
        site: forward.direction(DRAW_KEY, site, g.shape, "rademacher", num_batch=1)
        for site, g in shapes.items()
    }

    def by_example(errors):
        each = [(errors[s] * u[s]).reshape(len(u[s]), -1).sum(1) for s in case.model.sites]
        return sum(each)

    own = by_example(found.own_errors)
    shared = by_example(found.site_errors) - own
    slope = own + shared.sum() if apart else jnp.full_like(own, (own + shared).sum())
    return {s: u[s] * slope.reshape(-1, *(1,) * (u[s].ndim - 1)) for s in u}


def weight_guess(case: zoo.Case, found: Reference, params: Any) -> Any:
    """`<grad, v> v` for everything that is not above the last site."""
    flat = dict(
        ("/".join(part.key for part in path), leaf)
        for path, leaf in jax.tree.leaves_with_path(found.grads)
    )
    readout = {"/".join(path) for path in case.model.readout}
    trunk = {n: g for n, g in flat.items() if n.rpartition("/")[0] not in readout}
    v = {n: forward.direction(DRAW_KEY, n, g.shape, "rademacher") for n, g in trunk.items()}
    slope = sum(jnp.vdot(trunk[n], v[n]) for n in trunk)
    return {n: slope * v[n] if n in trunk else g for n, g in flat.items()}


def streams_of(case: zoo.Case) -> dict[str, Any]:
    """The keys of a pass."""
    streams = {"dropout": FORWARD_KEY}
    return streams | (
        {"noise": named_key(FORWARD_KEY, "noise")} if "noise" in case.model.streams else {}
    )


class Cut(list):
    """Notes the value at a site and goes on with a constant."""


def pooled(h: Any, head: Any, axes: int) -> Any:
    """A linear head on the mean over everything between the rows and the channels."""
    h = h.reshape(*h.shape[:axes], -1, h.shape[-1]).mean(axes)
    return h @ head["kernel"] + head["bias"].reshape(*(1,) * axes, -1)


def stand_in(case: zoo.Case, outputs: Any, made: Any) -> Any:
    """The outputs with what a head has made in place of those that are tapped."""
    outputs = jax.lax.stop_gradient(outputs)
    if isinstance(outputs, dict):
        return outputs | {"logits": made}
    if isinstance(outputs, tuple):
        return made[..., :3], made[..., 3]
    return made.reshape(outputs.shape)


def local(name: str, form: str) -> Any:
    """Losses at blocks: gradients of all of them with the graph cut behind each block, and the
    derivative of each block's loss by its activity."""
    case = zoo.made(name)
    kind, axes = case.kind, case.model.batch_axes

    def loss_at(h, head, outputs, batch):
        made = stand_in(case, outputs, pooled(h, head, axes))
        each, shared = objective_of(kind, form, made, batch.targets)
        return each.sum() + shared

    def cut_pass(params, batch):
        notes = {site: Cut() for site in case.model.sites}
        variables = {"params": params, **(case.state or {})}
        with nn.intercept_methods(functools.partial(move, notes)):
            outputs, mutated = kind.module.apply(
                variables,
                batch.inputs,
                True,
                rngs=streams_of(case),
                mutable=[*case.state, "losses"],
                method=call_of(kind),
            )
        return outputs, dict(mutated), {site: note[0] for site, note in notes.items()}

    def total(params, batch, blocks):
        heads = params["local_heads"]
        trunk = {key: leaf for key, leaf in params.items() if key != "local_heads"}
        outputs, mutated, h = cut_pass(trunk, batch)
        each, shared = objective_of(kind, form, outputs, batch.targets)
        if kind.options.get("auxiliary"):
            shared += sum(jnp.sum(leaf) for leaf in jax.tree.leaves(mutated.get("losses", {})))
        own = [loss_at(h[site], heads[site], outputs, batch) for site in blocks]
        return each.sum() + shared + sum(own)

    def of_activities(params, batch, blocks):
        heads = params["local_heads"]
        trunk = {key: leaf for key, leaf in params.items() if key != "local_heads"}
        outputs, _, h = cut_pass(trunk, batch)
        return {s: jax.grad(loss_at)(h[s], heads[s], outputs, batch) for s in blocks}

    return jax.grad(total), of_activities


def projection(d: Any, g: Any, apart: bool) -> Any:
    """`<d, g> g / |g|^2` of each example, or of the batch as one vector."""
    d, g = np.asarray(d, float), np.asarray(g, float)
    axes = tuple(range(1, d.ndim)) if apart else None
    slope = (d * g).sum(axes, keepdims=True) / np.maximum((g * g).sum(axes, keepdims=True), 1e-30)
    return slope * g


def is_told_apart(case: zoo.Case, form: str) -> bool:
    """Whether a rule that guesses by example can tell the examples of this loss apart."""
    has_more = form == "weighted, and more" or bool(case.kind.options.get("auxiliary"))
    return form != "a scalar" and not isinstance(case.kind.module, zoo.ResNet) and not has_more
