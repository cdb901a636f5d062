"""What every value of a traced program is made of: of parameters, of data, or of both.

The products in which data meets something made of parameters alone are the linear maps of a model,
whatever modules wrote them. `transposes` gives them another transpose.

A value has a level (`CONSTANT`; `INDEX`: integers of data, and what they picked; `MODULATED`;
`DATA`) and owners, the parameters that it is made of:

| | no owners | owners |
| --- | --- | --- |
| `CONSTANT` | keys, statistics, dropout's masks | a weight: a kernel, also a normalised one |
| `INDEX` | tokens, routing, masks | a selected weight: an embedding, an expert's kernel |
| `MODULATED` | | a weight that inputs scale, mask or shift, without a product |
| `DATA` | inputs | (an activation; its owners are not kept) |
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives

from dfa_jax.tree import Path

CONSTANT, INDEX, MODULATED, DATA = range(4)

PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general", "ragged_dot")
_ENTRYWISE = ("mul", "div", "scatter-mul", "scatter_mul")
_HARMLESS = (  # an error passes them as it is, or not at all, whatever the weight
    "add", "add_any", "sub", "max", "min", "clamp", "select_n", "concatenate", "pad", "complex",
    "dynamic_update_slice", "scatter", "scatter-add", "scatter_add", "scatter-sub", "scatter-min",
    "scatter_min", "scatter-max", "scatter_max", "sort",
)  # fmt: skip
_ONE_BY_ONE = ("optimization_barrier", "device_put", "psum", "pmax", "pmin", "pvary")


class Kind(NamedTuple):
    """What a value is made of.

    Attributes:
        level: `CONSTANT`, `INDEX`, `MODULATED` or `DATA`.
        owners: the parameters that it is made of; none are kept of an activation.
        learns: whether an error that reaches it reaches a parameter.
    """

    level: int = CONSTANT
    owners: frozenset[Path] = frozenset()
    learns: bool = False

    @property
    def is_weight(self) -> bool:
        """Whether it is made of parameters alone, or picked from such by an index."""
        return bool(self.owners)


class Program(NamedTuple):
    """A traced program with the kind of every value, and the programs inside of its equations."""

    jaxpr: core.Jaxpr
    consts: Sequence[Any]
    kinds: dict[core.Var, Kind]
    inner: dict[int, tuple["Program", ...]]

    def kind(self, atom: core.Var | core.Literal) -> Kind:
        """Of a value in it."""
        return Kind() if isinstance(atom, core.Literal) else self.kinds[atom]

    def outputs(self) -> list[Kind]:
        """The kinds of what it returns."""
        return [self.kind(atom) for atom in self.jaxpr.outvars]


class Meeting(NamedTuple):
    """An equation in which data meets a weight.

    Attributes:
        how: `product`, `entrywise`, `opaque`, or `merged`: a product of two weights.
        weight: which operand it is.
        owners: the parameters that meet.
        error_passes: whether the data's error reaches a parameter.
        fan_in: how many numbers are summed for one output of a product.
    """

    how: str
    weight: int
    owners: frozenset[Path]
    error_passes: bool
    fan_in: int = 1


def analyse(traced: Any, inputs: Sequence[Kind]) -> Program:
    """The kinds of all values of a program, from those of its inputs.

    Args:
        traced: from `jax.make_jaxpr`, or the program of an equation.
        inputs: one for each of its arguments.
    """
    jaxpr, consts = getattr(traced, "jaxpr", traced), getattr(traced, "consts", ())
    kinds = dict.fromkeys(jaxpr.constvars, Kind())
    kinds |= dict(zip(jaxpr.invars, inputs, strict=True))
    program = Program(jaxpr, consts, kinds, {})
    for number, equation in enumerate(jaxpr.eqns):
        given = [program.kind(atom) for atom in equation.invars]
        inner, found = _recurse(equation, given) or ((), _combine(equation, given))
        if inner:
            program.inner[number] = inner
        kinds |= dict(zip(equation.outvars, found, strict=True))
    return program


def scan_sizes(options: dict[str, Any]) -> tuple[int, int]:
    """How many of a scan's operands are constants, and how many are carried."""
    if "num_carry" in options:
        return options["num_consts"], options["num_carry"]
    consts, carry, _ = options["ft_in"].unpack()  # from jax 0.12 on
    return len(consts), len(carry)


def meetings(program: Program) -> Iterator[Meeting]:
    """All of them, in order, those inside of equations too."""
    for number, equation in enumerate(program.jaxpr.eqns):
        for inner in program.inner.get(number, ()):
            yield from meetings(inner)
        if number not in program.inner and (found := meeting(program, equation)):
            yield found


def meeting(program: Program, equation: core.JaxprEqn) -> Meeting | None:
    """How data meets a weight in an equation without a program, if it does.

    The weight is the operand of parameters at the lower level: a kernel, if it meets an embedding.
    """
    kinds = [program.kind(atom) for atom in equation.invars]
    level = max((kind.level for kind in kinds), default=CONSTANT)
    name = equation.primitive.name
    weights = [
        i
        for i, kind in enumerate(kinds)
        if kind.is_weight and kind.level < level and _is_float(equation.invars[i].aval)
    ]
    if name in PRODUCTS and not weights and _are_merged(*kinds[:2]):
        return Meeting("merged", 0, kinds[0].owners | kinds[1].owners, error_passes=True)
    if not weights or name in (*_HARMLESS, *_ONE_BY_ONE):
        return None
    weight = min(weights, key=lambda i: kinds[i].level)
    if name in PRODUCTS:
        passes = kinds[1 - weight].learns
        return Meeting("product", weight, kinds[weight].owners, passes, fan_in(equation))
    if not any(_is_float(atom.aval) for atom in equation.outvars):
        return None
    owners = frozenset().union(*(kinds[i].owners for i in weights))
    passes = any(kind.learns for i, kind in enumerate(kinds) if i not in weights)
    if name in _ENTRYWISE:
        return Meeting("entrywise", weight, owners, passes)
    return Meeting("opaque", weight, owners, passes or _hides_layers(equation, kinds))


def _hides_layers(equation: core.JaxprEqn, kinds: Sequence[Kind]) -> bool:
    """Whether an error may pass a weight in a program that is not looked into by evaluation."""
    for inner in core.jaxprs_in_params(equation.params):
        if len(inner.invars) != len(kinds):  # a kernel, or a loop until something holds
            return True
        if any(one.error_passes for one in meetings(analyse(inner, kinds))):
            return True
    return False


def fan_in(product: core.JaxprEqn) -> int:
    """How many numbers are summed for one output of a product."""
    avals: list[Any] = [atom.aval for atom in product.invars]
    left, right = avals[0].shape, avals[1].shape
    options = product.params
    if product.primitive.name == "conv_general_dilated":
        return math.prod(right) // max(1, right[options["dimension_numbers"].rhs_spec[0]])
    numbers = options.get("dimension_numbers")
    if numbers is None:
        numbers = options["ragged_dot_dimension_numbers"].dot_dimension_numbers
    return math.prod(left[axis] for axis in numbers[0][0])


def join(left: Kind, right: Kind) -> Kind:
    """The kind of what may depend on both."""
    level = max(left.level, right.level)
    owners = left.owners | right.owners if level < DATA else frozenset()
    return Kind(level, owners, left.learns or right.learns)


def _is_float(aval: Any) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)


def _join_all(kinds: Sequence[Kind]) -> Kind:
    found = Kind()
    for kind in kinds:
        found = join(found, kind)
    return found


def _combine(equation: core.JaxprEqn, given: Sequence[Kind]) -> list[Kind]:
    """The kinds of what an equation without a program returns."""
    name = equation.primitive.name
    if name in _ONE_BY_ONE and len(given) == len(equation.outvars):
        return list(given)
    found = _join_all(given)
    if name in PRODUCTS and (found.level >= MODULATED or _meets_selected(given[:2])):
        found = Kind(DATA, learns=found.learns)
    elif _is_modulated(given):
        owners = frozenset().union(*(kind.owners for kind in given))
        found = Kind(MODULATED, owners, learns=found.learns)
    if name == "stop_gradient":
        found = found._replace(learns=False)
    counts = any(
        kind.level == INDEX and not kind.owners and _is_number(atom.aval)
        for kind, atom in zip(given, equation.invars, strict=True)
    )
    return [_of_type(atom.aval, found, counts) for atom in equation.outvars]


def _are_merged(left: Kind, right: Kind) -> bool:
    """Whether a product is of two parameters that learn; of one with itself, it normalises."""
    learn = left.learns and right.learns
    return learn and left.is_weight and right.is_weight and left.owners != right.owners


def _meets_selected(operands: Sequence[Kind]) -> bool:
    """Whether a kernel is applied to an embedding: to data, from here on."""
    return {kind.level for kind in operands if kind.owners} == {CONSTANT, INDEX}


def _is_modulated(given: Sequence[Kind]) -> bool:
    """Whether a weight meets inputs, none of which has passed a parameter."""
    inputs = [kind for kind in given if kind.level == DATA]
    owned = any(kind.owners for kind in given)
    return owned and bool(inputs) and not any(kind.learns for kind in inputs)


def _is_number(aval: Any) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.integer)


def _of_type(aval: Any, kind: Kind, counts: bool) -> Kind:
    """A kind for this type: integers of data are an index, floats made of such are data."""
    if _is_float(aval):
        made = kind.level == INDEX and not kind.owners and counts
        return Kind(DATA, learns=kind.learns) if made else kind
    if kind.level == CONSTANT:
        return kind._replace(learns=False)
    return Kind(INDEX)


def _recurse(
    equation: core.JaxprEqn, given: Sequence[Kind]
) -> tuple[tuple[Program, ...], list[Kind]] | None:
    """The programs of an equation that is looked into, and the kinds of what it returns."""
    kind, options = equation.primitive, equation.params
    if kind in (primitives.jit_p, primitives.remat_p):
        inner = analyse(options["jaxpr"], given)
        return (inner,), inner.outputs()
    if kind is primitives.closed_call_p:
        inner = analyse(options["call_jaxpr"], given)
        return (inner,), inner.outputs()
    if kind is primitives.cond_p:
        branches = tuple(analyse(branch, given[1:]) for branch in options["branches"])
        chosen = Kind(given[0].level)
        each = zip(*(branch.outputs() for branch in branches), strict=True)
        return branches, [
            _of_type(atom.aval, _join_all([chosen, *kinds]), False)
            for atom, kinds in zip(equation.outvars, each, strict=True)
        ]
    if kind is primitives.scan_p:
        return _scan(equation, given)
    return None


def _scan(equation: core.JaxprEqn, given: Sequence[Kind]) -> tuple[tuple[Program], list[Kind]]:
    """The body of a loop; its carries are what they can become in any step."""
    num_consts, num_carry = scan_sizes(equation.params)
    consts, carry = given[:num_consts], list(given[num_consts : num_consts + num_carry])
    rows = given[num_consts + num_carry :]
    while True:
        body = analyse(equation.params["jaxpr"], [*consts, *carry, *rows])
        found = body.outputs()
        after = [join(one, new) for one, new in zip(carry, found[:num_carry], strict=True)]
        if after == carry:
            return (body,), [*carry, *found[num_carry:]]
        carry = after
