"""`Model`: a module, how it is called, its named credit sites, and what is needed to find them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.core import meta
from jaxtyping import Array

from dfa_jax import errors
from dfa_jax.keys import named_key
from dfa_jax.models.maps import LinearMap
from dfa_jax.tree import Path, leaves_by_name, with_leaves
from dfa_jax.types import Params, PRNGKey

Call = Callable[[Any, Any, bool], Any]
"""`call(module, inputs, train)`: the module's outputs, in training or in evaluation."""


class Site(NamedTuple):
    """A place in the forward pass where a learning rule delivers an error.

    Attributes:
        path: the submodule, from the root.
        place: `"output"` of that submodule or its `"input"`.
        stack: sizes of the leading layer axes, `()` unless the submodule sits under `nn.scan`.
        leaf: which array of the value there, by name; `""` where there is one only.
        has_examples: whether the first axis behind the layers is that of the examples.
    """

    path: tuple[str, ...]
    place: str
    stack: tuple[int, ...]
    leaf: str = ""
    has_examples: bool = True

    @property
    def key(self) -> str:
        """Place and leaf in one word."""
        return f"{self.place}:{self.leaf}" if self.leaf else self.place


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A module, unchanged, seen as pure functions with named credit sites.

    It is static: two of equal descriptions are equal and hash alike. What changes from pass to pass
    is bound to it for one pass, inside of a traced function (`bind`).

    Attributes:
        module: the Linen module.
        call: how it is called on a batch's inputs.
        structure: of the inputs that it was made with.
        streams: random streams that it is given in training: `"dropout"`, and what it asks for.
        eval_streams: random streams that it asks for in evaluation.
        moves_in_evaluation: whether it moves its variables in evaluation too, where that is undone.
        collections: of variables besides the parameters, which a training pass may move, such as
            `batch_stats`; they are the model's state.
        auxiliary: collections of sown losses, which are added to the objective.
        tap: names of the outputs whose error direct feedback reads, and that the heads of local
            losses stand in for; all outputs if there is one only.
        batch_axes: leading axes of these outputs that are examples, or places of an example, each
            with an error of its own; behind them are the axes of one error vector.
        independent_axes: leading axes along which nothing mixes, model and loss included: 1 for
            examples, 2 where positions do not mix either, 0 where examples are coupled, as by batch
            statistics.
        sites: names of the credit sites in forward order: `"block_0"` is the output of that
            submodule, `"block_0:input"` its input.
        places: where each site is, in the same order.
        maps: the parameters in whose products errors travel, in forward order: chain rules
            (feedback alignment and its kin) give each another matrix for the way back.
        unswapped: parameters that an error passes otherwise, which chain rules do not replace.
        blocks: names of the places where a block ends: local losses sit there, and greedy learning
            cuts there. They are the sites unless given.
        readout: submodules with parameters that are called above the last site and block.
        homes: submodules with parameters, each with the block that it lies in; not those above the
            last block, nor one that is called around the end of a block, or twice.
    """

    module: Any
    call: Call
    structure: Any
    streams: tuple[str, ...]
    eval_streams: tuple[str, ...]
    moves_in_evaluation: bool
    collections: tuple[str, ...]
    auxiliary: tuple[str, ...]
    tap: tuple[str, ...]
    batch_axes: int
    independent_axes: int
    maps: tuple[LinearMap, ...]
    unswapped: tuple[Path, ...]
    sites: tuple[str, ...]
    places: tuple[Site, ...]
    blocks: tuple[str, ...]
    readout: tuple[tuple[str, ...], ...]
    homes: tuple[tuple[tuple[str, ...], str], ...]
    survey: Any  # what `at` finds other sites by
    state: Any = None
    key: PRNGKey | None = None
    train: bool = True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Model):
            return NotImplemented
        own, others = self._description, other._description
        return own == others and _same(self.module, other.module) and not self._is_bound

    def __hash__(self) -> int:
        if self._is_bound:
            raise TypeError("a model with a state or key bound to it is no static argument")
        return hash(self._description)  # the module may have fields that do not hash

    @property
    def _description(self) -> tuple[Any, ...]:
        hidden = ("module", "survey", "state", "key")
        names = [f.name for f in dataclasses.fields(self) if f.name not in hidden]
        return (type(self.module), *(getattr(self, name) for name in names))

    @property
    def _is_bound(self) -> bool:
        return self.key is not None or bool(jax.tree.leaves(self.state))

    @property
    def where(self) -> dict[str, Site]:
        """Where each site is, in forward order (JAX sorts the keys of the dicts it returns)."""
        return dict(zip(self.sites, self.places, strict=True))

    @property
    def linear_maps(self) -> dict[str, LinearMap]:
        """The linear maps by name, in forward order."""
        return {linear_map.name: linear_map for linear_map in self.maps}

    def at(self, sites: str | Sequence[str], *, blocks: str | Sequence[str] = ()) -> "Model":
        """The same module, called in the same way, with other sites.

        Raises:
            SiteError: as `from_linen`.
        """
        return dataclasses.replace(self, **self.survey.placed(sites, blocks))

    def bind(self, state: Any = None, *, key: PRNGKey | None = None, train: bool = True) -> "Model":
        """The model for one pass: with its state, the key of its random streams, and its mode."""
        return dataclasses.replace(self, state=state, key=key, train=train)

    def init(self, key: PRNGKey, inputs: Any) -> Params:
        """Draws the parameters, a nested dict of arrays."""
        return self.init_variables(key, inputs)[0]

    def init_variables(self, key: PRNGKey, inputs: Any) -> tuple[Params, Any, Any]:
        """Draws the parameters; the state before the first step, `()` if there is none; outputs."""
        params_key, rest = jax.random.split(key)
        keys = {"params": params_key} | stream_keys(self.streams, rest)
        outputs, variables = self.module.init_with_output(
            keys, self._checked(inputs), True, method=self.call
        )
        variables = meta.unbox(variables)
        state = {name: variables.get(name, {}) for name in self.collections}
        return variables["params"], state or (), outputs

    def apply(
        self,
        params: Params,
        inputs: Any,
        *,
        state: Any = (),
        key: PRNGKey | None = None,
        train: bool = False,
    ) -> Any:
        """The plain forward pass: the outputs, whatever the module returns.

        Args:
            params: as `init` draws them.
            inputs: as the model was made with.
            state: as `init_variables` returns it; it is read and not moved.
            key: for random streams; evaluation needs one only if the module asks for it there.
            train: whether the module is called as in training.
        """
        bound = self.bind(state, key=key, train=train)
        return bound.run(params, inputs, ())[0]

    def run(self, variables: Params, inputs: Any, mutable: Sequence[str]) -> tuple[Any, Any]:
        """Outputs, and these collections besides the state that a training pass moves.

        Raises:
            InputError: the inputs have another structure than the model was made with, its state is
                not bound to it, or it asks for random numbers and has no key.
        """
        moves = self.train or self.moves_in_evaluation
        moved = [*mutable, *(self.collections if moves else ())]
        own = _of(self.survey.variables["params"], variables)
        found = self.module.apply(
            {"params": own, **self._bound_state()},
            self._checked(inputs),
            self.train,
            rngs=self._keys(),
            mutable=moved or False,
            method=self.call,
        )
        return found if moved else (found, {})

    def _bound_state(self) -> Mapping[str, Any]:
        if self.collections and not self.state:
            raise errors.InputError(
                f"the model has variables besides its parameters ({', '.join(self.collections)}),"
                " and none were given; pass the state that init_variables or a step returned"
            )
        return self.state or {}

    def _keys(self) -> dict[str, PRNGKey]:
        """The `rngs` argument of a Linen `apply`; without a key, no stream has any."""
        if self.key is None:
            if not self.train and self.eval_streams:
                raise errors.InputError(
                    f"the module asks for random numbers in evaluation too"
                    f" ({', '.join(self.eval_streams)}), and no key was given; pass key="
                )
            return {}
        return stream_keys(self.streams if self.train else self.eval_streams, self.key)

    def _checked(self, inputs: Any) -> Any:
        if (found := jax.tree.structure(inputs)) != self.structure:
            raise errors.InputError(
                f"the inputs are {found} and the model was made with {self.structure}; give it"
                " inputs of that structure, or make a model with these"
            )
        if any(jnp.shape(leaf)[:1] == (0,) for leaf in jax.tree.leaves(inputs)):
            raise errors.InputError("the batch is empty: an input has 0 examples; give it one")
        return inputs

    def tapped(self, outputs: Any) -> dict[str, Any]:
        """The outputs where the error is read, by name; of a dict of them by name, likewise.

        Raises:
            InputError: there are several, and `tap` names none of them.
        """
        leaves = float_leaves(outputs)
        if not self.tap and len(leaves) != 1:
            raise errors.InputError(
                f"the model has {len(leaves)} outputs of floating-point numbers"
                f" ({described(leaves)}); name those whose error the rule is to read:"
                " from_linen(..., tap=...)"
            )
        return tapped_of(leaves, self.tap)

    def with_tapped(self, outputs: Any, values: Mapping[str, Any]) -> Any:
        """The outputs with these in place of the tapped ones; no derivative by the others."""
        return with_leaves(jax.tree.map(jax.lax.stop_gradient, outputs), values)

    def error_shape(self, outputs: Any) -> tuple[int, ...]:
        """Of what `read_error` makes of errors like these outputs; abstract ones will do."""
        return jax.eval_shape(self.read_error, outputs).shape

    def read_error(self, error: Any) -> Array:
        """The errors of all tapped outputs as one vector, `[*batch, width]`.

        `error` is like the outputs, or a dict by their names.
        """
        axes = self.batch_axes
        rows = [e.reshape(*e.shape[:axes], -1) for e in self.tapped(error).values()]
        return rows[0] if len(rows) == 1 else jnp.concatenate(rows, -1)


def stream_keys(names: tuple[str, ...], key: PRNGKey) -> dict[str, PRNGKey]:
    """A key for each random stream; dropout has the key itself."""
    return {name: key if name == "dropout" else named_key(key, name) for name in names}


def float_leaves(value: Any) -> dict[str, Any]:
    """Floating-point arrays of at least one axis, by name."""
    return {n: leaf for n, leaf in leaves_by_name(value).items() if is_array_of_floats(leaf)}


def tapped_of(leaves: Mapping[str, Any], tap: tuple[str, ...]) -> dict[str, Any]:
    """Those of the outputs that are tapped, or all where none is named."""
    return {name: leaf for name, leaf in leaves.items() if not tap or name in tap}


def is_array_of_floats(leaf: Any) -> bool:
    """Whether it is one, of at least one axis: a lone number is no activity and no output."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim > 0


def described(leaves: Mapping[str, Any]) -> str:
    """Names and shapes for a message."""
    return ", ".join(f"'{name}' {tuple(leaf.shape)}" for name, leaf in leaves.items())


ORDERS = "dfa_jax_orders"
"""What rides along in the parameters for `autodiff.sites`."""


def _of(known: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The module's own parameters, without those that a rule adds, which it must not see."""
    kept = {}
    for name, part in params.items():
        if name in known and isinstance(part, Mapping):
            kept[name] = _of(known[name], part)
        elif name in known or name == ORDERS or _holds_orders(part):
            kept[name] = part
    return kept


def _holds_orders(part: Any) -> bool:
    """Whether there are orders inside, at a submodule that has no parameters."""
    return isinstance(part, Mapping) and (
        ORDERS in part or any(_holds_orders(inner) for inner in part.values())
    )


def _same(module: Any, other: Any) -> bool:
    """Equality of modules, some of which hold arrays that have none."""
    if module is other:
        return True
    try:
        return bool(module == other)
    except (TypeError, ValueError):
        return False
