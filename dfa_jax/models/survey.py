"""What one abstract forward pass of a Linen module shows: its places, and what is there."""

import fnmatch
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta, tracers

from dfa_jax import errors
from dfa_jax.models.base import Call, Site, described, float_leaves, stream_keys

_MARK = "dfa_jax_mark"
_INPUT = ":input"


class Survey:
    """One abstract forward pass in training, which notes the submodules that are called, in order.

    Attributes:
        values: what is at each place, without numbers, in forward order; the places are named like
            sites without a leaf.
        outputs: the module's, without numbers.
        variables: its variables, without numbers and marks.
        norms: normalisations, which are called so, and PReLU: vectors of theirs scale activations.
        has_batch_statistics: whether a `BatchNorm` read those of the batch.
    """

    def __init__(
        self, module: nn.Module, call: Call, streams: tuple[str, ...], tap: tuple[str, ...]
    ):
        self.module, self.call, self.streams, self.tap = module, call, streams, tap

    def take(self, inputs: Any) -> "Survey":
        """Looks at the module called on inputs like these, of which only shapes are read."""
        self._forget()
        marked = self._run(inputs)
        if self._overlooked(marked):
            self._forget()
            # Unrolls scans, so only where a cached nn.jit trace hid a submodule.
            with jax.disable_jit():
                marked = self._run(inputs)
        self.marked = marked
        self.variables = without_marks(marked)
        arrays = [*float_leaves(self.outputs).values(), *_sized(inputs)]
        self.number = next((leaf.shape[0] for leaf in arrays), 0)  # of examples
        self.twice: dict[str, Any] = {}  # what is at each place if the batch is twice as large
        return self

    def doubled(self, inputs: Any) -> Any:
        """Inputs of a batch that is twice as large, without numbers."""

        def double(leaf):
            shape = jnp.shape(leaf)
            if shape[:1] == (self.number,):
                shape = (2 * self.number, *shape[1:])
            return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf))

        return jax.tree.map(double, inputs)

    def note_twice(self, next_fun, args, kwargs, context):
        """An interceptor of a pass of such a batch, which notes what is at each place."""
        if context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        name = "/".join(context.module.path)
        self.twice.setdefault(name + _INPUT, _abstract(given(args, kwargs)))
        outputs = next_fun(*args, **kwargs)
        self.twice[name] = _abstract(outputs)
        return outputs

    def _has_examples(self, place: str, leaf: str) -> bool:
        """Whether the first axis of an array is as long as the batch, and grows with it."""

        def front(values: dict[str, Any]) -> tuple[int, ...]:
            leaves = float_leaves(values[place])
            return (leaves[leaf] if leaf else next(iter(leaves.values()))).shape[:1]

        if front(self.values) != (self.number,):
            return False
        return place not in self.twice or front(self.twice) == (2 * self.number,)

    def _forget(self) -> None:
        self.values: dict[str, Any] = {}  # in forward order
        self.norms: set[tuple[str, ...]] = set()
        self.within: list[tuple[str, ...]] = []  # calls in progress; a shared scope is one place
        self.called_twice: set[str] = set()
        self.uncarried: set[str] = set()
        self.untied: set[str] = set()
        self.returned: dict[str, Any] = {}
        self.is_output: set[str] = set()
        self.has_batch_statistics = False
        self.outputs: Any = None

    def _run(self, inputs: Any) -> dict[str, Any]:
        """Abstract variables of the module, with two marks at every submodule.

        A mark has the shape `(0,)` where it is put: the axes that it has besides outside are those
        of the loops around it. The one in `intermediates` tells a stacked site from a plain one,
        the one in `params` tells a loop over layers from a loop over time or examples.
        """

        def trace(key, inputs):
            keys = {"params": key} | stream_keys(self.streams, key)
            outputs, variables = self.module.init_with_output(
                keys, inputs, True, mutable=True, method=self.call
            )
            leaves = float_leaves(outputs)
            final = {
                id(leaf)
                for name, leaf in leaves.items()
                if name in self.tap or (not self.tap and len(leaves) == 1)
            }
            for name, value in self.returned.items():
                if any(id(leaf) in final for leaf in float_leaves(value).values()):
                    self.is_output.add(name)
            return outputs, meta.unbox(variables)

        with nn.intercept_methods(self._note):
            self.outputs, variables = jax.eval_shape(trace, jax.random.key(0), inputs)
        self.returned = {}  # tracers
        return variables

    def _note(self, next_fun, args, kwargs, context):
        """An interceptor; lifted transforms (`nn.scan`) show up under other method names."""
        module, path = context.module, context.module.path
        if context.method_name != "__call__" or not path or path in self.within:
            return next_fun(*args, **kwargs)
        name = "/".join(path)
        self.values.setdefault(name + _INPUT, _abstract(given(args, kwargs)))
        if module.has_variable("intermediates", _MARK):
            self.called_twice.add(name)
        self.within.append(path)
        try:
            outputs = next_fun(*args, **kwargs)
        finally:
            self.within.pop()
        if in_raw_transform(module):
            self.untied.add(name)
        else:
            for collection in ("params", "intermediates"):
                if module.is_mutable_collection(collection):
                    module.put_variable(collection, _MARK, jnp.zeros(0))
        if not module.is_mutable_collection("intermediates"):
            self.uncarried.add(name)
        self.values.setdefault(name, _abstract(outputs))
        self.returned[name] = outputs
        if isinstance(module, nn.BatchNorm):
            frozen = kwargs.get("use_running_average", module.use_running_average)
            self.has_batch_statistics |= not frozen
        if isinstance(module, nn.PReLU) or "norm" in type(module).__name__.lower():
            self.norms.add(path)
        return outputs

    def _overlooked(self, variables: dict[str, Any]) -> bool:
        """Whether a submodule has variables and yet was not seen: `nn.jit` had its trace cached."""
        owners = owners_of(variables.get("params", {}))
        return any(path and "/".join(path) not in self.values for path in owners)

    def is_scale(self, path: tuple[str, ...]) -> bool:
        """Whether a parameter is a normalisation's scale, which keeps its true transpose."""
        leaf: Any = self.variables["params"]
        for part in path:
            leaf = leaf[part]
        return path[:-1] in self.norms and leaf.ndim - self.num_stack(path) <= 1

    def num_stack(self, path: tuple[str, ...]) -> int:
        """Layer axes in front of a parameter."""
        return max(0, len(_mark_shape(self.marked, "params", path[:-1])) - 1)

    def placed(self, sites: str | Sequence[str], blocks: str | Sequence[str]) -> dict[str, Any]:
        """The attributes of a `Model` that follow from its sites and blocks."""
        called = list(self.values)
        names = self._match(sites)
        places = tuple(self._site(name) for name in names)
        ends = self._match(blocks) if blocks else names
        for name in ends:
            self._site(name)  # for its checks
        own = owners_of(self.variables["params"])  # not those of another module applied inside
        once = own - {tuple(name.split("/")) for name in self.called_twice}
        spans = _spans(called, once)
        last = max(called.index(_split(name)[0]) for name in (*names, *ends))
        homes = [(path, _home(span, called, ends)) for path, span in spans.items()]
        return {
            "sites": names,
            "places": places,
            "blocks": ends,
            "readout": tuple(path for path, span in spans.items() if span.start >= last),
            "homes": tuple((path, block) for path, block in homes if block is not None),
        }

    def _match(self, names: str | Sequence[str]) -> tuple[str, ...]:
        """Site names that any pattern matches, in forward order, each with its pattern's leaf."""
        patterns = [names] if isinstance(names, str) else list(names)
        if not patterns:
            raise errors.SiteError("no credit site was given; name at least one, or use '*'")
        chosen: dict[str, None] = {}
        for pattern in patterns:
            place, leaf = _split(pattern)
            found = [name for name in self.values if matches(name, place)]
            if not found:
                outputs = [name for name in self.values if not name.endswith(_INPUT)]
                raise errors.SiteError(
                    errors.unknown("credit site", pattern, outputs)
                    + " (each also with ':input' for the place before it)"
                )
            chosen.update(dict.fromkeys(f"{name}:{leaf}" if leaf else name for name in found))
        order = list(self.values)
        return tuple(sorted(chosen, key=lambda name: order.index(_split(name)[0])))

    def _site(self, name: str) -> Site:
        """Where the site is, after the checks that can be made before any rule runs."""
        place, leaf = _split(name)
        owner = place.removesuffix(_INPUT)
        path, side = tuple(owner.split("/")), "input" if place != owner else "output"
        if owner in self.called_twice:
            raise errors.SiteError(
                f"site '{name}': its submodule is called more than once in a forward pass, so one"
                " error cannot serve it; give each call a submodule of its own, or move the site"
            )
        if owner in self.untied:
            raise errors.SiteError(raw_transform(name))
        carried, owned = (
            _mark_shape(self.marked, kind, path) for kind in ("intermediates", "params")
        )
        if owner in self.uncarried and owned != (0,):
            raise errors.SiteError(
                f"site '{name}' is inside a lifted loop that does not carry 'intermediates', so its"
                " activity cannot leave the loop; put the site on the submodule outside the loop,"
                " or, if the loop is your own, add them to its variable_axes:"
                ' nn.scan(..., variable_axes={"params": 0, "intermediates": 0})'
            )
        if side == "output" and owner in self.is_output:
            raise errors.SiteError(
                f"site '{name}' is the model's output, which has the exact error already; leave it"
                " out of the sites"
            )
        if owner in self.uncarried or carried != owned or carried[-1:] != (0,):
            steps = tuple(size for size in carried if size)
            raise errors.SiteError(
                f"site '{name}' is inside a loop{f' of {steps} steps' if steps else ''} that is not"
                " over layers (its parameters and its intermediates do not both have the loop's"
                " axis in front), as a loop over time or examples; put the site on the submodule"
                " outside the loop"
            )
        self._check_leaf(name, place, leaf)
        return Site(path, side, carried[:-1], leaf, self._has_examples(place, leaf))

    def _check_leaf(self, name: str, place: str, leaf: str) -> None:
        """Refuses a place of no array, or of several where none is named."""
        leaves = float_leaves(self.values[place])
        if leaf and leaf not in leaves:
            raise errors.SiteError(errors.unknown(f"array at site '{place}'", leaf, leaves))
        if not leaf and len(leaves) != 1:
            remedy = (
                f"name one, as in '{place}:{next(iter(leaves))}'"
                if leaves
                else "put the site on a submodule with one"
            )
            raise errors.SiteError(
                f"site '{name}' has {len(leaves)} floating-point arrays"
                f" ({described(leaves) or 'none'}), and an error goes to exactly one; {remedy}"
            )


def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call, by position or name."""
    return {str(i): arg for i, arg in enumerate(args)} | kwargs


def _abstract(value: Any) -> Any:
    """Shapes and types of the arrays in a value."""

    def without_numbers(leaf):
        is_array = hasattr(leaf, "dtype")
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_array else leaf

    return jax.tree.map(without_numbers, value)


def _sized(tree: Any) -> list[Any]:
    """The arrays of at least one axis."""
    return [leaf for leaf in jax.tree.leaves(tree) if getattr(leaf, "ndim", 0)]


def without_marks(tree: Any) -> Any:
    """A nested dict without the marks of a survey."""
    if not isinstance(tree, dict):
        return tree
    return {name: without_marks(part) for name, part in tree.items() if name != _MARK}


def _split(name: str) -> tuple[str, str]:
    """`NAME[:input][:LEAF]` in place and leaf."""
    owner, *parts = name.split(":")
    if parts and parts[0] in ("input", "output"):
        side, parts = parts[0], parts[1:]
        owner += _INPUT if side == "input" else ""
    return owner, ":".join(parts)


def matches(name: str, pattern: str) -> bool:
    """Glob match part by part, so that `*` stops at `/`; the place must agree."""
    if name.endswith(_INPUT) != pattern.endswith(_INPUT):
        return False
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


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
    where = {called.index(_split(end)[0]): end for end in ends}
    if any(span.start < place < span.stop for place in where):
        return None
    return next((where[place] for place in sorted(where) if place >= span.stop), None)


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
        " activity cannot leave; put the site outside of it, or, if the module is your own, use the"
        " lifted transform (nn.jit, nn.scan, nn.vmap)"
    )


def owners_of(tree: Any) -> set[tuple[str, ...]]:
    """Paths of the submodules that have an array of their own in a nested dict."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(key.key for key in path[:-1]) for path, _ in leaves}
