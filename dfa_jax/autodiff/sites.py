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

A value with any of these is recorded as it is before the cut. Several at one site are carried out
in this sequence.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from dfa_jax import tree
from dfa_jax.errors import SiteError
from dfa_jax.models.base import ORDERS, Model, Site, is_array_of_floats
from dfa_jax.models.survey import given, in_raw_transform, raw_transform
from dfa_jax.types import Params, SiteArrays

_RECORD = "dfa_jax_record_"
_MARK = "mark"  # of no number: what changes parameters on their way to a submodule changes its type

Orders = dict[tuple[str, ...], dict[str, Any]]
"""What to do at which submodule: path -> {"output" or "input" -> {order: array}}."""


class Passed(NamedTuple):
    """One forward pass.

    Attributes:
        outputs: what the module returns.
        activities: of every visited site, by site.
        state: the model's state after it.
        sown: the sum of the model's auxiliary losses, or None.
    """

    outputs: Any
    activities: SiteArrays
    state: Any
    sown: Array | None


def activities(model: Model, params: Params, inputs: Any) -> tuple[Any, SiteArrays]:
    """Outputs and site activities of a forward pass whose graph is cut at every site."""
    return apply_with_orders(model, params, inputs, cut_orders(model))[:2]


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

    def run(state, key, params, inputs):
        bound = model.bind(state, key=key, train=model.train)
        return activities(bound, params, inputs)

    key = jax.random.key(0)  # random streams want one; nothing is drawn
    return jax.eval_shape(run, model.state, key, params, inputs)


def apply_with_orders(model: Model, params: Params, inputs: Any, orders: Orders) -> Passed:
    """The forward pass of a bound model with orders carried out."""
    auxiliary = model.auxiliary if model.train else ()
    with nn.intercept_methods(_Visitor()):
        outputs, variables = model.run(
            put_orders(params, orders), inputs, ("intermediates", *auxiliary)
        )
    records: Any = variables.get("intermediates", {})
    visited = {
        site: _read_record(records, site, place)
        for site, place in model.where.items()
        if place.key in orders.get(place.path, {})
    }
    state = {
        name: jax.tree.map(lambda new, old: new.astype(old.dtype), variables[name], old)
        if name in variables
        else old
        for name, old in (model.state or {}).items()
    }
    sown = [jnp.sum(leaf) for leaf in jax.tree.leaves([variables.get(n, {}) for n in auxiliary])]
    total = jnp.stack(sown).sum() if sown else None
    return Passed(outputs, visited, state or (), total)


def put_orders(params: Params, orders: Orders) -> Params:
    """The parameters with each order under its submodule's path."""
    for path, order in orders.items():
        params = tree.put(params, (*path, ORDERS), order)
    return params


def merge_orders(left: Orders, right: Orders) -> Orders:
    """All orders of both, at the same places too."""
    merged = dict(left)
    for path, order in right.items():
        mine = merged.get(path, {})
        merged[path] = mine | {place: mine.get(place, {}) | new for place, new in order.items()}
    return merged


def at_sites(model: Model, order: str, arrays: SiteArrays) -> Orders:
    """The same order at several sites, with an array for each."""
    orders: Orders = {}
    for site, place in model.where.items():
        if site in arrays:
            what = {order: arrays[site]}
            if order != "cut":
                what[_MARK] = jnp.zeros(place.stack, bool)
            orders = merge_orders(orders, {place.path: {place.key: what}})
    return orders


def cut_orders(model: Model) -> Orders:
    """Cut at every site; the zeros have the site's layer axes, for a scan to slice."""
    return at_sites(model, "cut", {site: jnp.zeros(at.stack) for site, at in model.where.items()})


class _Visitor:
    """The interceptor: follows the orders that it finds beside a submodule's parameters.

    Submodules that share a scope (`nn.share_scope`, a call of `super().__call__`) are one place:
    that of the outermost call.
    """

    def __init__(self):
        self.within: list[tuple[str, ...]] = []

    def __call__(self, next_fun, args, kwargs, context):
        """The submodule's value, after its orders."""
        module = context.module
        if context.method_name != "__call__" or module.scope is None:
            return next_fun(*args, **kwargs)
        orders = module.get_variable("params", ORDERS, {})
        if not orders or module.path in self.within:
            return next_fun(*args, **kwargs)
        self.within.append(module.path)
        try:
            for key in (key for key in orders if key.startswith("input")):
                changed = _visit(module, key, orders[key], given(args, kwargs))
                args = tuple(changed[str(i)] for i in range(len(args)))
                kwargs = {name: changed[name] for name in kwargs}
            outputs = next_fun(*args, **kwargs)
        finally:
            self.within.pop()
        for key in (key for key in orders if key.startswith("output")):
            outputs = _visit(module, key, orders[key], outputs)
        return outputs


def _visit(module: nn.Module, key: str, order: dict[str, Array], value: Any) -> Any:
    """Carries out the orders on the array of floating-point numbers that the key names."""
    name = "/".join(module.path)
    place, _, wanted = key.partition(":")
    leaves, structure = jax.tree.flatten(value)
    found = [
        i
        for i, leaf_name in enumerate(tree.leaf_names(value))
        if is_array_of_floats(leaves[i]) and wanted in ("", leaf_name)
    ]
    if len(found) != 1:
        raise SiteError(
            f"site '{name}': its {place} has {len(found)} floating-point arrays, and an error goes"
            " to exactly one; put the site on a submodule with one"
        )
    if _MARK in order and order[_MARK].dtype != bool:
        raise SiteError(
            f"site '{name}' is inside of `nn.map_variables`, which changes what is to be done there"
            " along with the parameters; put the site on the submodule outside"
        )
    h: Any = order.get("replace", leaves[found[0]])
    if "perturb" in order:
        h = _perturbed(h, order["perturb"])
    _record(module, name, key, h)
    leaves[found[0]] = jax.lax.stop_gradient(h) if "cut" in order else h
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


def _record(module: nn.Module, name: str, key: str, h: Array) -> None:
    """Puts the activity where it can leave the module, or says why it cannot."""
    if in_raw_transform(module):  # the activity would leak out as a constant, with no gradient
        raise SiteError(raw_transform(name))
    if not module.is_mutable_collection("intermediates"):
        raise SiteError(
            f"site '{name}' is inside a lifted loop that does not carry 'intermediates'; put the"
            " site outside of it, or, if the loop is your own, add them:"
            ' nn.scan(..., variable_axes={"params": 0, "intermediates": 0})'
        )
    if module.has_variable("intermediates", _RECORD + key):
        raise SiteError(f"site '{name}' is called more than once in a forward pass")
    module.put_variable("intermediates", _RECORD + key, h)


def _read_record(records: dict[str, Any], site: str, place: Site) -> Array:
    try:
        return tree.get(records, (*place.path, _RECORD + place.key))
    except KeyError:
        raise SiteError(
            f"site '{site}' was not reached in this forward pass, so no error can be delivered to"
            " it; is its submodule called under every input, and through __call__?"
        ) from None
