"""What a configuration takes besides names and numbers: functions, and how a module is called."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import optax
from flax.errors import FlaxError

from dfa_jax.errors import InputError, reason
from dfa_jax.losses import LOSSES
from dfa_jax.metrics import MetricFn
from dfa_jax.models.base import Call
from dfa_jax.optim import Optimizer
from dfa_jax.train.described import describe
from dfa_jax.types import LossFn

RAISED = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, FlaxError)
"""What others' code raises over arrays of a wrong size, structure or type."""

IN_CODE = {"in_code": True}
"""Metadata of a field that no command line has."""

LossName = Literal[
    "softmax_cross_entropy",
    "sigmoid_cross_entropy",
    "squared_error",
    "nt_xent",
    "nt_xent_unstopped",
]


@dataclasses.dataclass(frozen=True)
class Calling:
    """How a module is called and its outputs are read, where that is not found: see `from_linen`.

    Attributes:
        call: `call(module, inputs, train)` returns the outputs.
        streams: random streams that the module uses where it has them and does not ask for.
        auxiliary: collections of sown losses, which are added to the objective.
        tap: the outputs whose error direct feedback reads, by name.
        batch_axes: leading axes of these outputs that have an error each.
        independent_axes: leading axes along which nothing mixes.
        true_transpose: parameters that chain rules leave alone, by path or glob pattern.
    """

    call: Call | None = dataclasses.field(default=None, metadata=IN_CODE)
    streams: tuple[str, ...] = ()
    auxiliary: tuple[str, ...] = ()
    tap: tuple[str, ...] = ()
    batch_axes: int | None = None
    independent_axes: int | None = None
    true_transpose: tuple[str, ...] = ()

    def __post_init__(self):
        _check_static("calling.call", self.call)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `from_linen`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def checked_metrics(given: Any) -> tuple[tuple[str, MetricFn], ...] | None:
    """The metrics as pairs, which can be hashed and compared.

    Raises:
        InputError: they are no functions by name.
    """
    if given is None:
        return None
    pairs = tuple(given.items()) if isinstance(given, Mapping) else tuple(given)
    expected = "expected functions of outputs and targets by name"
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise InputError(f"metrics has {pair!r}; {expected}")
        name, function = pair
        if not (isinstance(name, str) and name and callable(function)):
            raise InputError(f"metrics has {name!r} with a {type(function).__name__}; {expected}")
        _check_static(f"metric '{name}'", function)
        if name == "loss":
            raise InputError("metrics has 'loss', which every run records; choose another name")
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"metrics has '{twice[0]}' twice; expected names that differ")
    return pairs


def checked_optimizer(given: Any) -> Optimizer | optax.GradientTransformation:
    """The optimiser, `optax.MultiSteps` as a transformation.

    Raises:
        InputError: it is none.
    """
    if isinstance(given, optax.MultiSteps):
        given = given.gradient_transformation()
    if not isinstance(given, Optimizer | optax.GradientTransformation):
        raise InputError(
            f"optimizer is a {type(given).__name__}; expected an Optimizer, or a transformation of"
            " Optax, as optax.adam(1e-3)"
        )
    return given


def tried(optimizer: Any, draw: Callable[[], Any]) -> Any:
    """The state, without numbers, that `draw` returns, after trying a transformation on it.

    Raises:
        InputError: it cannot be run on these parameters, or asks for more than the loss's value.
    """
    if isinstance(optimizer, Optimizer):
        return draw()
    try:
        state = draw()
        tx = optax.with_extra_args_support(optimizer)
        loss = jax.ShapeDtypeStruct((), jax.numpy.float32)
        grads = state.params
        jax.eval_shape(
            lambda loss, *rest: tx.update(*rest, value=loss),
            loss, grads, state.opt_state, state.params,
        )  # fmt: skip
    except InputError:
        raise
    except RAISED as error:
        raise InputError(
            f"optimizer {describe(optimizer)} does not run on the parameters ({reason(error)}); it"
            " is given gradients, its state, the parameters and the loss as `value`"
        ) from error
    return state


def check_loss(given: Any) -> None:
    """Refuses what is neither a known name nor a function.

    Raises:
        InputError: names what was given.
    """
    if isinstance(given, str) and given not in LOSSES:
        raise InputError(f"loss is '{given}'; expected one of {', '.join(LOSSES)}")
    if not isinstance(given, str) and not callable(given):
        raise InputError(
            f"loss is a {type(given).__name__}; expected a function of outputs and targets, or one"
            f" of {', '.join(LOSSES)}"
        )
    _check_static("loss", given)


def _check_static(what: str, given: Any) -> None:
    """Refuses what cannot be known again: each step would be compiled anew."""
    try:
        hash(given)
    except TypeError as error:
        raise InputError(
            f"{what} is a {type(given).__name__}, which cannot be hashed; expected a function, or"
            " an instance of a frozen dataclass"
        ) from error


def loss_name(loss: str | LossFn) -> str:
    """The loss in a message: its name, or where the function is defined."""
    return loss if isinstance(loss, str) else describe(loss)
