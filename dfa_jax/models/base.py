"""`Model`: a Linen module with named credit sites, and what is needed to find them."""

import dataclasses
import fnmatch
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta, tracers

from dfa_jax import errors
from dfa_jax.types import Params, PRNGKey

LINEAR_MAPS = (nn.DenseGeneral, nn.Dense, nn.ConvTranspose, nn.Conv)
"""Linen modules that map their input linearly by one parameter named `kernel` (plus a bias)."""

_MARK = "dfa_jax_mark"
_INPUT = ":input"


class Site(NamedTuple):
    """A place in the forward pass where a learning rule delivers an error.

    Attributes:
        path: the submodule, from the root.
        place: `"output"` of that submodule or its `"input"`.
        stack: sizes of the leading layer axes, `()` unless the submodule sits under `nn.scan`.
    """

    path: tuple[str, ...]
    place: str
    stack: tuple[int, ...]


class LinearMap(NamedTuple):
    """A submodule with a `kernel`; `fan_in` counts the inputs of one unit."""

    path: tuple[str, ...]
    fan_in: int


@dataclasses.dataclass(frozen=True)
class Model:
    """A Linen module, unchanged, seen as pure functions with named credit sites.

    Attributes:
        module: the Linen module. Its only variables are `params`.
        sites: names of the credit sites in forward order: `"block_0"` is the output of that
            submodule, `"block_0:input"` its input.
        places: where each site is, in the same order.
        maps: the dense and convolutional submodules in forward order, which chain rules
            (feedback alignment and its kin) give a feedback matrix.
        blocks: names of the places where a block ends: local losses sit there, and greedy learning
            cuts there. They are the sites unless given.
        readout: submodules with parameters that are called above the last site and block.
        homes: submodules with parameters, each with the block that it lies in; not those above the
            last block, nor one that is called around the end of a block, or twice.
    """

    module: nn.Module
    sites: tuple[str, ...]
    places: tuple[Site, ...]
    maps: tuple[LinearMap, ...]
    blocks: tuple[str, ...]
    readout: tuple[tuple[str, ...], ...]
    homes: tuple[tuple[tuple[str, ...], str], ...]

    @property
    def where(self) -> dict[str, Site]:
        """Where each site is, in forward order (JAX sorts the keys of the dicts it returns)."""
        return dict(zip(self.sites, self.places, strict=True))

    @property
    def linear_maps(self) -> dict[str, LinearMap]:
        """The linear maps by name, in forward order."""
        return {"/".join(linear_map.path): linear_map for linear_map in self.maps}

    def init(self, key: PRNGKey, inputs: Any) -> Params:
        """Draws the parameters, a nested dict of arrays."""
        params_key, dropout_key = jax.random.split(key)
        keys = {"params": params_key, "dropout": dropout_key}
        return meta.unbox(self.module.init(keys, inputs)["params"])

    def apply(self, params: Params, inputs: Any, *, key: PRNGKey | None = None) -> Any:
        """The plain forward pass: outputs `[*batch, features]`. `key` feeds dropout."""
        return self.module.apply({"params": params}, inputs, rngs=dropout_keys(key))


def dropout_keys(key: PRNGKey | None) -> dict[str, PRNGKey]:
    """The `rngs` argument of a Linen `apply`; without a key, dropout has none."""
    return {} if key is None else {"dropout": key}


def from_linen(
    module: nn.Module,
    sites: str | Sequence[str],
    inputs: Any,
    *,
    blocks: str | Sequence[str] = (),
) -> Model:
    """Turns any Linen module, unchanged, into a `Model` with credit sites.

    A site is named by a submodule's path (`"block_3/attention"`): the graph is cut just after that
    submodule. With `":input"` behind it the cut is just before: where the activation function is
    not a module of its own, `"Dense_1:input"` is the place after the first layer's activation.
    Names may be glob patterns; a `*` stops at `/`. Works with `nn.remat`, `nn.jit`, and with
    `nn.scan` over layers that carries `variable_axes={"params": 0, "intermediates": 0}`.

    Args:
        module: the module; it is called as `module(inputs)` and has no variables but `params`.
        sites: one name or pattern, or several.
        inputs: an example batch, or its `jax.ShapeDtypeStruct`; only shapes and types are read.
        blocks: where blocks end, named like sites; none for the sites themselves.

    Raises:
        SiteError: a name matches no submodule, a site is called twice, is the model's output, sits
            in a loop that does not carry `intermediates` or that is not over layers, or in a raw
            JAX transform.
        InputError: the module has variables other than `params`.

    >>> model = from_linen(nn.Sequential([nn.Dense(8), nn.Dense(2)]), "layers_0", jnp.ones((1, 3)))
    >>> model.sites
    ('layers_0',)
    """
    survey = _Survey(module)
    variables = survey.run(inputs)
    if survey.overlooked(variables):
        survey = _Survey(module)
        # Unrolls scans, so only where a cached nn.jit trace hid a submodule.
        with jax.disable_jit():
            variables = survey.run(inputs)
    if extra := sorted(set(variables) - {"params", "intermediates"}):
        raise errors.InputError(
            f"{type(module).__name__} has variables {', '.join(extra)} besides params, which a pure"
            " step does not update; use LayerNorm or GroupNorm in place of BatchNorm"
        )
    called = list(survey.places)
    names = _match(sites, called)
    places = tuple(survey.site(name, variables) for name in names)
    ends = _match(blocks, called) if blocks else names
    for name in ends:
        survey.site(name, variables)  # for its checks
    own = _owners(variables["params"])  # not those of another module applied inside this one
    maps = tuple(found for path, found in survey.linear_maps.items() if path in own)
    once = own - {tuple(name.split("/")) for name in survey.called_twice}
    spans = _spans(called, once)
    last = max(called.index(name) for name in (*names, *ends))
    readout = tuple(path for path, span in spans.items() if span.start >= last)
    homes = [(path, _home(span, called, ends)) for path, span in spans.items()]
    known = tuple((path, block) for path, block in homes if block is not None)
    return Model(module, names, places, maps, ends, readout, known)


def _spans(called: list[str], own: set[tuple[str, ...]]) -> dict[tuple[str, ...], range]:
    """From its input to its output, in places called: every submodule with parameters, in order."""
    paths = {name: tuple(name.split("/")) for name in called if not name.endswith(_INPUT)}
    return {
        path: range(called.index(name + _INPUT), called.index(name))
        for name, path in paths.items()
        if path in own
    }


def _home(span: range, called: list[str], ends: tuple[str, ...]) -> str | None:
    """The block whose end is the first behind the submodule, if none is inside it."""
    where = {called.index(end): end for end in ends}
    if any(span.start < place < span.stop for place in where):
        return None
    return next((where[place] for place in sorted(where) if place >= span.stop), None)


def _match(names: str | Sequence[str], available: list[str]) -> tuple[str, ...]:
    """Available site names that any pattern matches, in forward order."""
    patterns = [names] if isinstance(names, str) else list(names)
    if not patterns:
        raise errors.SiteError("no credit site was given; name at least one, or use '*'")
    chosen: set[str] = set()
    for pattern in patterns:
        found = [name for name in available if _matches(name, pattern)]
        if not found:
            outputs = [name for name in available if not name.endswith(_INPUT)]
            raise errors.SiteError(
                errors.unknown("credit site", pattern, outputs)
                + " (each also with ':input' for the place before it)"
            )
        chosen.update(found)
    return tuple(name for name in available if name in chosen)


def _matches(name: str, pattern: str) -> bool:
    """Glob match part by part, so that `*` stops at `/`; the place must agree."""
    if name.endswith(_INPUT) != pattern.endswith(_INPUT):
        return False
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


class _Survey:
    """One abstract forward pass that notes which submodules are called, in order."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.places: dict[str, None] = {}  # an ordered set of site names
        self.linear_maps: dict[tuple[str, ...], LinearMap] = {}
        self.called_twice: set[str] = set()
        self.uncarried: set[str] = set()
        self.untied: set[str] = set()
        self.returned: dict[str, Any] = {}
        self.outputs: Any = None

    def run(self, inputs: Any) -> dict[str, Any]:
        """Abstract variables of the module, with two marks at every submodule.

        A mark has the shape `(0,)` where it is put: the axes that it has besides outside are those
        of the loops around it. The one in `intermediates` tells a stacked site from a plain one,
        the one in `params` tells a loop over layers from a loop over time or examples.
        """

        def trace(key, inputs):
            self.outputs, variables = self.module.init_with_output(
                {"params": key, "dropout": key}, inputs, mutable=True
            )
            return meta.unbox(variables)

        with nn.intercept_methods(self._note):
            return jax.eval_shape(trace, jax.random.key(0), inputs)

    def _note(self, next_fun, args, kwargs, context):
        """An interceptor; lifted transforms (`nn.scan`) show up under other method names."""
        module, path = context.module, context.module.path
        if context.method_name != "__call__" or not path:
            return next_fun(*args, **kwargs)
        name = "/".join(path)
        self.places.setdefault(name + _INPUT)
        if module.has_variable("intermediates", _MARK):
            self.called_twice.add(name)
        outputs = next_fun(*args, **kwargs)
        if in_raw_transform(module):
            self.untied.add(name)
        else:
            for collection in ("params", "intermediates"):
                if module.is_mutable_collection(collection):
                    module.put_variable(collection, _MARK, jnp.zeros(0))
        if not module.is_mutable_collection("intermediates"):
            self.uncarried.add(name)
        self.places.setdefault(name)
        self.returned[name] = outputs
        if isinstance(module, LINEAR_MAPS):
            self.linear_maps[path] = LinearMap(path, _fan_in(module))
        return outputs

    def overlooked(self, variables: dict[str, Any]) -> bool:
        """Whether a submodule has variables and yet was not seen: `nn.jit` had its trace cached."""
        owners = _owners(variables.get("params", {}))
        return any(path and "/".join(path) not in self.places for path in owners)

    def site(self, name: str, variables: dict[str, Any]) -> Site:
        """Where the site is, after the checks that can be made before any rule runs."""
        owner = name.removesuffix(_INPUT)
        path, place = tuple(owner.split("/")), "input" if name != owner else "output"
        if owner in self.called_twice:
            raise errors.SiteError(
                f"site '{name}': its submodule is called more than once in a forward pass, so one"
                " error cannot serve it; give each call a submodule of its own, or move the site"
            )
        if owner in self.untied:
            raise errors.SiteError(raw_transform(name))
        if owner in self.uncarried:
            raise errors.SiteError(
                f"site '{name}' is inside a lifted loop that does not carry 'intermediates', so its"
                " activity cannot leave the loop; add it to the loop's variable_axes:"
                ' nn.scan(..., variable_axes={"params": 0, "intermediates": 0})'
            )
        if place == "output" and self.returned[owner] is self.outputs:
            raise errors.SiteError(
                f"site '{name}' is the model's output, which has the exact error already; leave it"
                " out of the sites"
            )
        carried = _mark_shape(variables, "intermediates", path)
        if carried != _mark_shape(variables, "params", path) or carried[-1:] != (0,):
            steps = tuple(size for size in carried if size)
            raise errors.SiteError(
                f"site '{name}' is inside a loop of {steps} steps that is not over layers (its"
                " parameters and its intermediates do not both have the loop's axis in front), as a"
                " loop over time or examples; put the site on the submodule outside the loop"
            )
        return Site(path, place, carried[:-1])


def _mark_shape(variables: Any, collection: str, path: tuple[str, ...]) -> tuple[int, ...]:
    """The shape of a submodule's mark, `()` where it has none."""
    for part in (collection, *path, _MARK):
        variables = variables.get(part, {})
    return getattr(variables, "shape", ())


def in_raw_transform(module: nn.Module) -> bool:
    """Whether a `jax` transform, and not a lifted one, stands between the module and its root."""
    scope, here = module.scope, tracers.current_trace()
    while scope is not None and scope.trace_level == here:
        scope = scope.parent  # lifted transforms start a new chain of scopes, at their own level
    return scope is not None


def raw_transform(name: str) -> str:
    """The message for a site inside a raw transform."""
    return (
        f"site '{name}' is inside a raw JAX transform (jax.jit, lax.scan, jax.vmap, ...), which its"
        " activity cannot leave; use the lifted one (nn.jit, nn.scan, nn.vmap)"
    )


def _owners(tree: Any) -> set[tuple[str, ...]]:
    """Paths of the submodules that have an array of their own in a nested dict."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(key.key for key in path[:-1]) for path, _ in leaves}


def _fan_in(module: nn.Module) -> int:
    """Inputs of one unit: the kernel's leading axes, without those of the features."""
    shape = jnp.shape(meta.unbox(module.get_variable("params", "kernel")))
    num_feature_axes = 1 if isinstance(module.features, int) else len(module.features)
    batch_dims = getattr(module, "batch_dims", ())  # of DenseGeneral: a matrix for each
    num_batch = 1 if isinstance(batch_dims, int) else len(batch_dims)
    return math.prod(shape[num_batch:-num_feature_axes])
