r"""Credit sites: cut the graph there, record activities, deliver errors.

The parameters between the previous sites and site `l` learn from the error `delta_l` that the site
receives, through a local VJP. `site_gradients` is that sentence as code; every site rule uses it.

What is to be done at a submodule is an *order*: a small dict of arrays that rides in the parameter
tree under the submodule's own path, so `nn.scan` slices it, `nn.remat` and `nn.jit` hand it on, and
a trace that was cached without the order can never be taken for one with it. One interceptor
carries the orders out; activities leave through the `intermediates` collection.

| order | at the site's value `h` |
| --- | --- |
| `replace` (array like `h`) | go on with this array, so all before it is dead code |
| `perturb` (zeros like `h`) | go on with `h`, and with the derivative of `h + p` |
| `cut` | go on with `stop_gradient(h)` |
| `record` | nothing |
| `feedback` (array like the kernel) | the map's transpose in the backward pass uses this kernel |

A value with any of the first four is recorded as it is before the cut. Several at one site are
carried out in this sequence.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from dfa_jax import tree
from dfa_jax.autodiff import feedback, layers
from dfa_jax.errors import SiteError
from dfa_jax.models.base import Model, Site, dropout_keys, in_raw_transform, raw_transform
from dfa_jax.types import Batch, LossFn, Params, PRNGKey, SiteArrays

_ORDERS = "dfa_jax_orders"
_RECORD = "dfa_jax_record_"

Orders = dict[tuple[str, ...], dict[str, Any]]
"""What to do at which submodule: path -> {"output" or "input" -> {order: array}, "feedback": B}."""

ErrorTap = Literal["logits", "last_hidden"]
"""Where the output error is read: at the model's outputs, or at the last site."""

Backward = Literal["sequential", "layer_parallel"]
"""Local VJPs of a scanned stack in a loop over its blocks, or all of them at once."""


class SiteGradients(NamedTuple):
    """What one cut forward pass and one round of local VJPs give."""

    loss: Float[Array, ""]
    outputs: Any
    errors: SiteArrays
    grads: Params


def site_gradients(
    model: Model,
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    send: Callable[[Array, SiteArrays], SiteArrays],
    *,
    key: PRNGKey | None = None,
    error_tap: ErrorTap = "logits",
    backward: Backward = "sequential",
) -> SiteGradients:
    r"""Gradients of all parameters from one error per site, by local VJPs.

    With `h_l` the activity of site `l`, `e` the error at the tap and `delta = send(e, h)`,

        grad theta = (dy/dtheta)^T dL/dy + sum_l (dh_l/dtheta)^T delta_l,

    where every Jacobian stops at the sites below. The true gradient is the case
    `delta_l = dL/dh_l`.

    Args:
        send: maps the error `[*batch, width]` at the tap and the activities `[*batch, *features]`
            by site (a stacked site has its layer axes in front) to one error per site, like the
            activity.
        key: feeds dropout.
        error_tap: `"logits"` reads `e = dL/dy`; `"last_hidden"` reads `dL/dh` at the last site.
        backward: in which order the local VJPs of a scanned stack are computed.

    Raises:
        SiteError: a site was not reached, or its error has another shape than its activity; or
            there is no stack for a layer-parallel backward pass.
    """

    def objective(outputs):
        return jnp.mean(loss_fn(outputs, batch.targets))

    cuts = cut_orders(model)

    def forward_cut(params):
        return refuse_output_site(
            model, *apply_with_orders(model, params, batch.inputs, cuts, key=key)
        )

    def vjp(forward, params):
        found, pull = jax.vjp(forward, params)
        return found, layers.in_parallel(pull) if backward == "layer_parallel" else pull

    if error_tap == "logits":
        (outputs, activities), pull = vjp(forward_cut, params)
        loss, error = jax.value_and_grad(objective)(outputs)
        sent = like_activities(send(error, activities), activities)
        (grads,) = pull((error, sent))
        return SiteGradients(loss, outputs, sent, grads)

    last = _last_hidden(model)

    def forward_head(params, hidden):
        below = {site: jnp.zeros(at.stack) for site, at in model.where.items() if site != last}
        orders = at_sites(model, "cut", below)
        orders = merge_orders(orders, at_sites(model, "replace", {last: hidden}))
        return apply_with_orders(model, params, batch.inputs, orders, key=key)[0]

    activities, pull_body = vjp(lambda params: forward_cut(params)[1], params)
    outputs, pull_head = jax.vjp(forward_head, params, activities[last])
    loss, output_error = jax.value_and_grad(objective)(outputs)
    head_grads, error = pull_head(output_error)
    error = error.reshape(*outputs.shape[:-1], -1)
    sent = like_activities(send(error, activities), activities)
    (body_grads,) = pull_body(sent)
    return SiteGradients(loss, outputs, sent, tree.add(head_grads, body_grads))


def activities(
    model: Model, params: Params, inputs: Any, *, key: PRNGKey | None = None
) -> tuple[Any, SiteArrays]:
    """Outputs and site activities of a forward pass whose graph is cut at every site."""
    return apply_with_orders(model, params, inputs, cut_orders(model), key=key)


def activity_shapes(model: Model, params: Params, inputs: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the site activities; nothing is computed, and abstract parameters will do."""
    return abstract_forward(model, params, inputs)[1]


def zero_activities(model: Model, params: Params, inputs: Any) -> SiteArrays:
    """Zeros like every site's activity: where a perturbation starts."""
    shapes = activity_shapes(model, params, inputs)
    return {site: jnp.zeros(a.shape, a.dtype) for site, a in shapes.items()}


def abstract_forward(
    model: Model, params: Params, inputs: Any
) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes of the outputs and of the site activities."""
    key = jax.random.key(0)  # dropout wants one; nothing is drawn
    return jax.eval_shape(lambda p, x: activities(model, p, x, key=key), params, inputs)


def apply_with_orders(
    model: Model, params: Params, inputs: Any, orders: Orders, *, key: PRNGKey | None = None
) -> tuple[Any, SiteArrays]:
    """The forward pass with orders carried out: outputs, and the activity of every visited site."""
    with nn.intercept_methods(_carry_out):
        outputs, variables = model.module.apply(
            {"params": put_orders(params, orders)},
            inputs,
            rngs=dropout_keys(key),
            mutable=["intermediates"],
        )
    records: Any = variables.get("intermediates", {})
    visited = {
        site: _read_record(records, site, place)
        for site, place in model.where.items()
        if place.place in orders.get(place.path, {})
    }
    return outputs, visited


def put_orders(params: Params, orders: Orders) -> Params:
    """The parameters with each order under its submodule's path."""
    for path, order in orders.items():
        params = tree.put(params, (*path, _ORDERS), order)
    return params


def apply_submodule(module: nn.Module, params: Params, inputs: Any) -> Any:
    """A module of its own beside the model, with the orders that ride in its parameters."""
    with nn.intercept_methods(_carry_out):
        return module.apply({"params": params}, inputs)


def merge_orders(left: Orders, right: Orders) -> Orders:
    """All orders of both, at the same places too."""
    merged = dict(left)
    for path, order in right.items():
        mine = merged.get(path, {})
        merged[path] = mine | {
            place: mine.get(place, {}) | new if place != "feedback" else new
            for place, new in order.items()
        }
    return merged


def at_sites(model: Model, order: str, arrays: SiteArrays) -> Orders:
    """The same order at several sites, with an array for each."""
    orders: Orders = {}
    for site, place in model.where.items():
        if site in arrays:
            orders = merge_orders(orders, {place.path: {place.place: {order: arrays[site]}}})
    return orders


def cut_orders(model: Model) -> Orders:
    """Cut at every site; the zeros have the site's layer axes, for a scan to slice."""
    return at_sites(model, "cut", {site: jnp.zeros(at.stack) for site, at in model.where.items()})


def feedback_orders(model: Model, feedback: dict[str, Array]) -> Orders:
    """The feedback kernels as orders to their linear maps."""
    return {model.linear_maps[name].path: {"feedback": B} for name, B in feedback.items()}


def _last_hidden(model: Model) -> str:
    if model.places[-1].stack:
        raise SiteError(
            f"error_tap='last_hidden' reads the error at the last site, '{model.sites[-1]}', which"
            " is a stack of layers; add a last site outside the stack, or use error_tap='logits'"
        )
    return model.sites[-1]


def _carry_out(next_fun, args, kwargs, context):
    """The interceptor: follows the orders that it finds beside the submodule's parameters."""
    module = context.module
    if context.method_name != "__call__" or module.scope is None:
        return next_fun(*args, **kwargs)
    orders = module.get_variable("params", _ORDERS, {})
    if "input" in orders:
        args = _visit(module, "input", orders["input"], args)
    if "feedback" in orders:
        outputs = feedback.swap_transpose(module, next_fun, args, kwargs, orders["feedback"])
    else:
        outputs = next_fun(*args, **kwargs)
    if "output" in orders:
        outputs = _visit(module, "output", orders["output"], outputs)
    return outputs


def _visit(module: nn.Module, place: str, order: dict[str, Array], value: Any) -> Any:
    """Carries out the orders on the single floating-point array in `value`."""
    name = "/".join(module.path)
    leaves, structure = jax.tree.flatten(value)
    floats = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]
    if len(floats) != 1:
        raise SiteError(
            f"site '{name}': its {place} has {len(floats)} floating-point arrays, and an error goes"
            " to exactly one; put the site on a submodule with one"
        )
    h: Any = order.get("replace", leaves[floats[0]])
    if "perturb" in order:
        h = _perturbed(h, order["perturb"])
    _record(module, name, place, h)
    leaves[floats[0]] = jax.lax.stop_gradient(h) if "cut" in order else h
    return jax.tree.unflatten(structure, leaves)


@jax.custom_jvp
def _perturbed(h: Array, p: Array) -> Array:
    """`h`, which has the derivative of `h + p`.

    Without an addition the program is that of the plain forward pass, and the compiler sees that
    several passes are one.
    """
    del p  # zero
    return h


@_perturbed.defjvp
def _perturbed_jvp(primals, tangents):
    h, _ = primals
    h_dot, p_dot = tangents
    return h, h_dot + p_dot


def _record(module: nn.Module, name: str, place: str, h: Array) -> None:
    """Puts the activity where it can leave the module, or says why it cannot."""
    if in_raw_transform(module):  # the activity would leak out as a constant, with no gradient
        raise SiteError(raw_transform(name))
    if not module.is_mutable_collection("intermediates"):
        raise SiteError(
            f"site '{name}' is inside a lifted loop that does not carry 'intermediates'; add it:"
            ' nn.scan(..., variable_axes={"params": 0, "intermediates": 0})'
        )
    if module.has_variable("intermediates", _RECORD + place):
        raise SiteError(f"site '{name}' is called more than once in a forward pass")
    module.put_variable("intermediates", _RECORD + place, h)


def _read_record(records: dict[str, Any], site: str, place: Site) -> Array:
    try:
        return tree.get(records, (*place.path, _RECORD + place.place))
    except KeyError:
        raise SiteError(
            f"site '{site}' was not reached in this forward pass, so no error can be delivered to"
            " it; is its submodule called under every input, and through __call__?"
        ) from None


def refuse_output_site(model: Model, outputs: Any, activities: SiteArrays) -> Any:
    """The identity, but for an error where no parameter moves the outputs from above the sites.

    A site that is the model's output through a scan, a remat or a tuple is not seen before here.
    """

    @jax.custom_jvp
    def check(outputs, activities):
        return outputs, activities

    def check_jvp(primals, tangents):
        if all(isinstance(t, SymbolicZero) for t in jax.tree.leaves(tangents[0])):
            raise SiteError(
                f"no parameter lies between the last site, '{model.sites[-1]}', and the model's"
                " outputs, so nothing would learn from the exact output error; leave out the site"
                " that is the model's output"
            )
        return primals, jax.tree.map(_instantiate, tangents)

    check.defjvp(check_jvp, symbolic_zeros=True)
    return check(outputs, activities)


def like_activities(sent: SiteArrays, activities: SiteArrays) -> SiteArrays:
    """The errors in the activities' types, after checking their shapes."""
    for site, h in activities.items():
        if site not in sent or sent[site].shape != h.shape:
            found = sent[site].shape if site in sent else "none"
            raise SiteError(f"site '{site}' needs an error of shape {h.shape}; it was sent {found}")
    return {site: sent[site].astype(h.dtype) for site, h in activities.items()}


def _instantiate(tangent: Any) -> Any:
    if isinstance(tangent, SymbolicZero):
        return jnp.zeros(tangent.shape, str(tangent.dtype))
    return tangent


def _is_float(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
