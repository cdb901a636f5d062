"""`from_linen`: any Linen module, unchanged, as a `Model` with credit sites."""

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.errors import InvalidRngError, ModifyScopeVariableError

from dfa_jax import errors
from dfa_jax.models.base import Call, Model, described, float_leaves, stream_keys, tapped_of
from dfa_jax.models.maps import Found, find_maps, named_leaves
from dfa_jax.models.survey import Survey, matches
from dfa_jax.tree import Path

_IN_TRAINING = ("train", "training", "is_training", "is_train")
_IN_EVALUATION = ("deterministic", "use_running_average")

_MISSING_STREAM = re.compile(r'needs PRNG for "(\w+)"')

_NO_STATE = ("params", "intermediates")


def from_linen(
    module: Any,
    sites: str | Sequence[str],
    inputs: Any,
    *,
    blocks: str | Sequence[str] = (),
    call: Call | None = None,
    streams: Sequence[str] = (),
    auxiliary: str | Sequence[str] = (),
    tap: str | Sequence[str] = (),
    batch_axes: int | None = None,
    independent_axes: int | None = None,
    true_transpose: str | Sequence[str] = (),
) -> Model:
    """Turns any Linen module, unchanged, into a `Model` with credit sites.

    A site is named by a submodule's path (`"block_3/attention"`): the graph is cut just after that
    submodule. With `":input"` behind it the cut is just before: where the activation function is
    not a module of its own, `"Dense_1:input"` is the place after the first layer's activation.
    Names may be glob patterns; a `*` stops at `/`. Where a submodule returns several arrays, the
    activity's name or index follows: `"block_*:0"`, `"encoder:input:hidden"`; paths that go around
    it keep their true gradient. Works with `nn.remat`, `nn.jit`, and with `nn.scan` over layers
    that carries `variable_axes={"params": 0, "intermediates": 0}`.

    Variables besides `params` (batch statistics and the like) are the model's state, which training
    steps move; what the module only sows is left out, unless it is named `auxiliary`.

    Args:
        module: the Linen module.
        sites: one name or pattern, or several.
        inputs: an example of a batch's inputs, of any structure, or its `jax.ShapeDtypeStruct`s;
            only shapes and types are read.
        blocks: where blocks end, named like sites; none for the sites themselves.
        call: how the module is called: `call(module, inputs, train)` returns its outputs, as in
            `lambda m, x, train: m(x["ids"], x["mask"], deterministic=not train)`. By default it is
            `module(inputs)`, with `train` (or `training`, `is_training`) true in training, and
            `deterministic` (or `use_running_average`) in evaluation, where it has such an argument.
        streams: random streams that the module uses where it has them and does not ask for; those
            that it asks for, and `"dropout"`, are found.
        auxiliary: collections whose sown losses are added to the objective.
        tap: the outputs whose error direct feedback reads, and that heads of local losses stand in
            for, by name (`"logits"`, `"0"`, `"heads/value"`); not needed where there is one.
        batch_axes: leading axes of these outputs that have an error each, see `Model`; by default
            all but the last, as many as all tapped outputs share.
        independent_axes: leading axes along which nothing mixes, see `Model`: by default 1, or 0
            where batch statistics couple the examples. 2 lets a forward gradient tell the positions
            of `[batch, time, ...]` apart, and holds only where no position's loss depends on
            another position's activities.
        true_transpose: parameters that chain rules are to leave alone, by path or glob pattern
            (`"block_*/scale"`): an error passes them as in backpropagation. The scales of
            normalisations (classes called so) are among them anyway.

    Raises:
        SiteError: a name matches no submodule, a site is called twice, is the model's output, sits
            in a loop that does not carry `intermediates` or that is not over layers, in a raw JAX
            transform, or has several arrays of which none is named.
        InputError: `module` is no Linen module, or asks for several arguments and `call` is left
            out; its variables change their shapes in a pass; there is no output, axis or collection
            as named.

    >>> module, x = nn.Sequential([nn.Dense(8), nn.Dense(2)]), jax.numpy.ones((1, 3))
    >>> model = from_linen(module, "layers_0", x)
    >>> model.sites
    ('layers_0',)
    """
    _check_module(module)
    call = call or _default_call(module)
    taps, sown = (_names(names) for names in (tap, auxiliary))
    given = tuple(dict.fromkeys(("dropout", *streams)))
    survey = Survey(module, call, given, taps).take(inputs)
    _check_taps(survey.outputs, taps)
    state = _State(survey, call, sown)
    (found, moved), asked = _asked(lambda names: state.trained(inputs, names), given)
    collections = state.collections(moved)
    moves, asked_in_evaluation = _asked(lambda names: state.evaluated(inputs, names), ())
    kept = _accepted(true_transpose, survey)
    axes = _shared_axes(survey.outputs, taps) if batch_axes is None else batch_axes
    coupled = survey.has_batch_statistics
    independent = (0 if coupled else 1) if independent_axes is None else independent_axes
    _check_axes(survey.outputs, taps, axes, independent, coupled=coupled)
    return Model(
        module=module,
        call=call,
        structure=jax.tree.structure(inputs),
        streams=tuple(dict.fromkeys((*given, *asked))),
        eval_streams=asked_in_evaluation,
        moves_in_evaluation=moves,
        collections=collections,
        auxiliary=sown,
        tap=taps,
        batch_axes=axes,
        independent_axes=independent,
        maps=tuple(one for one in found.maps if one.path not in kept),
        unswapped=tuple(
            path
            for path in (*found.entrywise, *found.opaque)
            if path not in kept and not survey.is_scale(path)
        ),
        survey=survey,
        **survey.placed(sites, blocks),
    )


@dataclasses.dataclass(frozen=True)
class PlainCall:
    """`module(inputs)`, with its arguments that tell training from evaluation.

    Attributes:
        training: names of those that are true in training.
        evaluation: names of those that are true in evaluation.
    """

    training: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()

    def __call__(self, module: Any, inputs: Any, train: bool) -> Any:
        """The module's outputs."""
        modes = dict.fromkeys(self.training, train) | dict.fromkeys(self.evaluation, not train)
        return module(inputs, **modes)


def _default_call(module: nn.Module) -> Call:
    """With one argument and the mode; refuses a module that asks for more."""
    known = inspect.signature(type(module).__call__).parameters
    modes = (_IN_TRAINING, _IN_EVALUATION)
    asked = [
        name
        for place, (name, one) in enumerate(known.items())
        if (place > 1 or one.kind is one.KEYWORD_ONLY)  # behind self and the inputs
        and one.default is one.empty
        and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if more := [name for name in asked if name not in _IN_TRAINING + _IN_EVALUATION]:
        raise errors.InputError(
            f"{type(module).__name__} has arguments besides its inputs ({', '.join(more)}); say how"
            " it is called on a batch's inputs: from_linen(..., call=lambda module, inputs, train:"
            " module(...))"
        )
    return PlainCall(*(tuple(name for name in names if name in known) for names in modes))


def _check_module(module: Any) -> None:
    if isinstance(module, nn.Module):
        return
    from flax import nnx  # seldom needed, and slow to import

    kind = type(module).__name__
    if isinstance(module, nnx.Module):
        raise errors.InputError(
            f"{kind} is a module of Flax NNX, which is not supported yet; write it in Flax Linen"
            " (flax.linen), or use autodiff.collect in a forward pass of your own"
        )
    raise errors.InputError(f"the module is a {kind}; expected an instance of flax.linen.Module")


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _asked(run: Any, given: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
    """What a pass returns with all the random streams that it asks for, and these."""
    asked: list[str] = []
    while True:
        try:
            return run(tuple(dict.fromkeys((*given, *asked)))), tuple(asked)
        except InvalidRngError as error:
            found = _MISSING_STREAM.search(str(error))
            if not found or found[1] in asked:
                raise
            asked.append(found[1])


class _State:
    """Which variables of a module are its state: those that a pass returns as it got them."""

    def __init__(self, survey: Survey, call: Call, auxiliary: tuple[str, ...]):
        self.survey, self.call, self.auxiliary = survey, call, auxiliary
        self.others = {k: v for k, v in survey.variables.items() if k not in _NO_STATE}
        for name in auxiliary:
            if name not in self.others:
                known = sorted(self.others)
                raise errors.InputError(errors.unknown("collection of sown losses", name, known))

    def trained(self, inputs: Any, streams: tuple[str, ...]) -> tuple[Found, dict[str, Any]]:
        """The linear maps that data meets in a training pass, and the collections after it.

        The pass is of a batch twice as large, if there can be one, which shows where examples are.
        """
        try:
            with nn.intercept_methods(self.survey.note_twice):
                found, after = self._train(self.survey.doubled(inputs), streams)
            if all(_shapes(after.get(k, old)) == _shapes(old) for k, old in self._kept.items()):
                return found, after
        except InvalidRngError:
            raise
        except Exception:
            self.survey.twice = {}
        return self._train(inputs, streams)

    def _train(self, inputs: Any, streams: tuple[str, ...]) -> tuple[Found, dict[str, Any]]:
        mutable = [*self.others, "intermediates"]

        def once(params, inputs, rest):
            kept, key = rest
            keys = stream_keys(streams, key)
            outputs, after = self._call(params, kept, inputs, keys, mutable, train=True)
            return list(float_leaves(outputs).values()), after

        found, (_, after) = find_maps(
            once,
            self.survey.variables["params"],
            inputs,
            (self._kept, self._key),
            self.survey.num_stack,
        )
        return found, after

    def evaluated(self, inputs: Any, streams: tuple[str, ...]) -> bool:
        """Tries a pass in evaluation; whether it moves variables all the same."""
        try:
            self._evaluate(inputs, streams, [])
        except ModifyScopeVariableError:
            self._evaluate(inputs, streams, [*self.others])
            return True
        return False

    def _evaluate(self, inputs: Any, streams: tuple[str, ...], mutable: list[str]) -> None:

        def once(params, kept, key, inputs):
            keys = stream_keys(streams, key)
            self._call(params, kept, inputs, keys, [*mutable, "intermediates"], train=False)

        jax.eval_shape(once, self.survey.variables["params"], self._kept, self._key, inputs)

    @property
    def _kept(self) -> dict[str, Any]:
        return {k: v for k, v in self.others.items() if k not in self.auxiliary}

    @property
    def _key(self) -> Any:
        return jax.eval_shape(lambda: jax.random.key(0))

    def _call(
        self, params: Any, kept: Any, inputs: Any, keys: Any, mutable: list[str], *, train: bool
    ) -> Any:
        return self.survey.module.apply(
            {"params": params, **kept},
            inputs,
            train,
            rngs=keys,
            mutable=mutable,
            method=self.call,
        )

    def collections(self, after: Mapping[str, Any]) -> tuple[str, ...]:
        """Those that are state; refuses one that changes its shapes but by sowing."""
        found = []
        for name, before in self.others.items():
            if name in self.auxiliary:
                continue
            now = after.get(name, before)
            if _shapes(now) == _shapes(before):
                found.append(name)
            elif not _is_sown(before, now):
                raise errors.InputError(
                    f"variables '{name}' of {type(self.survey.module).__name__} are"
                    f" {_written(before)} before a pass and {_written(now)} after it; expected the"
                    " same shapes, which a step can carry on"
                )
        return tuple(sorted(found))


def _accepted(patterns: str | Sequence[str], survey: Survey) -> set[Path]:
    """The parameters that any pattern matches.

    Raises:
        InputError: a pattern matches none.
    """
    paths = {"/".join(path): path for path, _ in named_leaves(survey.variables["params"])}
    found: set[Path] = set()
    for pattern in _names(patterns):
        chosen = [path for name, path in paths.items() if matches(name, pattern)]
        if not chosen:
            raise errors.InputError(errors.unknown("parameter", pattern, paths))
        found.update(chosen)
    return found


def _shapes(tree: Any) -> Any:
    """What a state has to keep; its types are kept for it."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [leaf.shape for leaf in leaves]


def _is_sown(before: Any, after: Any) -> bool:
    """Whether a collection grew as `sow` makes it grow: by tuples of more values."""
    if isinstance(after, tuple):
        return isinstance(before, tuple) and len(after) > len(before)
    if isinstance(after, Mapping) and isinstance(before, Mapping):
        return all(
            _is_sown(before.get(k, ()), part) or _shapes(before.get(k)) == _shapes(part)
            for k, part in after.items()
        )
    return False


def _written(tree: Any) -> str:
    return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(tree)) or "none"


def _check_taps(outputs: Any, taps: tuple[str, ...]) -> None:
    leaves = float_leaves(outputs)
    for name in taps:
        if name not in leaves:
            raise errors.InputError(errors.unknown("output to tap", name, leaves))


def _shared_axes(outputs: Any, taps: tuple[str, ...]) -> int:
    """Leading axes that all tapped outputs have, without the last one of each."""
    shapes = [leaf.shape for leaf in tapped_of(float_leaves(outputs), taps).values()]
    if not shapes:
        return 1
    most = min((max(1, len(shape) - 1) for shape in shapes), default=1)
    alike = [len({shape[axis] for shape in shapes}) == 1 for axis in range(most)]
    return alike.index(False) if False in alike else most


def _check_axes(
    outputs: Any, taps: tuple[str, ...], batch_axes: int, independent_axes: int, *, coupled: bool
) -> None:
    leaves = tapped_of(float_leaves(outputs), taps)
    front = {leaf.shape[:batch_axes] for leaf in leaves.values()}
    short = any(leaf.ndim < batch_axes for leaf in leaves.values())
    if leaves and (batch_axes < 1 or short or len(front) > 1):
        raise errors.InputError(
            f"batch_axes is {batch_axes}, and the outputs are {described(leaves) or 'none'};"
            " expected a number of leading axes that all of them share, at least 1"
        )
    if coupled and independent_axes:
        raise errors.InputError(
            f"independent_axes is {independent_axes}, and the module has BatchNorm, whose"
            " statistics couple all examples; leave it out"
        )
    if not 0 <= independent_axes <= batch_axes:
        raise errors.InputError(
            f"independent_axes is {independent_axes}; expected 0 (all is coupled) to {batch_axes},"
            " the batch axes"
        )
