"""Loops of steps, batches and parts, whose convolutions run as quickly as outside of a loop.

XLA's compiler for the CPU puts a convolution's axes into the order that its fast routines want,
`[batch, ..., features]` by `[..., features, features]`, only where no loop is around it. The
gradient of a kernel, which JAX writes with the axes exchanged, then runs by a plain loop over all
products, a hundred times slower. So the order is put right here, in the traced body of a loop, when
the program is lowered for a CPU; for every other device it stays as it was written.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.extend.core import primitives
from jax.lax import ConvDimensionNumbers


def loop_body(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, to be the body of `lax.fori_loop`, `lax.scan` or `lax.map`.

    Its results are equal to the bit where the compiler would have put the axes in order by itself,
    and are rounded otherwise where it would not: convolutions in groups, and in half precision.
    """

    def body(*arguments: Any) -> Any:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        found = _on_its_device(traced)(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return body


def _on_its_device(traced: core.ClosedJaxpr) -> Callable[..., list[Any]]:
    """The program as it was written; on a CPU with the axes of its convolutions in order."""
    as_written = core.jaxpr_as_fun(traced)
    if not any(_is_out_of_order(equation) for equation in _equations(traced.jaxpr)):
        return as_written
    in_order = core.jaxpr_as_fun(core.ClosedJaxpr(_in_order(traced.jaxpr), traced.consts))
    return lambda *values: jax.lax.platform_dependent(*values, cpu=in_order, default=as_written)


def _equations(program: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """All of them, those of inner programs too."""
    for equation in program.eqns:
        yield equation
        for inner in inner_programs(equation.params.values()):
            yield from _equations(inner)


def inner_programs(values: Iterable[Any]) -> Iterator[core.Jaxpr]:
    """The programs among an equation's parameters: of a call, a loop or branches."""
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif type(value) in (tuple, list):
            yield from inner_programs(value)


def _changed(value: Any) -> Any:
    """A parameter with the programs in it in order."""
    if isinstance(value, core.ClosedJaxpr):
        return core.ClosedJaxpr(_in_order(value.jaxpr), value.consts)
    if isinstance(value, core.Jaxpr):
        return _in_order(value)
    if type(value) in (tuple, list):
        return type(value)(_changed(part) for part in value)
    return value


def _in_order(program: core.Jaxpr) -> core.Jaxpr:
    """The program with every convolution as transpositions around one whose axes are in order."""
    equations: list[core.JaxprEqn] = []
    for equation in program.eqns:
        if _is_out_of_order(equation):
            equations += _transposed(equation)
        else:
            params = {name: _changed(value) for name, value in equation.params.items()}
            equations.append(equation.replace(params=params))
    return program.replace(eqns=equations)


def _is_out_of_order(equation: core.JaxprEqn) -> bool:
    if equation.primitive is not primitives.conv_general_dilated_p:
        return False
    written: ConvDimensionNumbers = equation.params["dimension_numbers"]
    return written != _order(len(written.lhs_spec))


def _order(ndim: int) -> ConvDimensionNumbers:
    """`[batch, ..., features]`, `[..., in, out]`, `[batch, ..., features]`."""
    places = range(ndim)
    first_last = (0, ndim - 1, *places[1:-1])
    return ConvDimensionNumbers(first_last, (ndim - 1, ndim - 2, *places[:-2]), first_last)


def _transposed(equation: core.JaxprEqn) -> list[core.JaxprEqn]:
    """The equations that take the place of a convolution's."""
    written: ConvDimensionNumbers = equation.params["dimension_numbers"]
    order = _order(len(written.lhs_spec))

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        y = primitives.conv_general_dilated_p.bind(
            jax.lax.transpose(x, _way(written.lhs_spec, order.lhs_spec)),
            jax.lax.transpose(kernel, _way(written.rhs_spec, order.rhs_spec)),
            **equation.params | {"dimension_numbers": order},
        )
        return jax.lax.transpose(y, _way(order.out_spec, written.out_spec))

    avals: list[Any] = [one.aval for one in equation.invars]
    program = jax.make_jaxpr(convolve)(
        *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals)
    ).jaxpr
    names = dict(zip(program.invars, equation.invars, strict=True))
    names |= dict(zip(program.outvars, equation.outvars, strict=True))

    def renamed(variables: Sequence[Any]) -> list[Any]:
        return [names.get(one, one) for one in variables]

    return [
        one.replace(invars=renamed(one.invars), outvars=renamed(one.outvars))
        for one in program.eqns
    ]


def _way(before: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    """The transposition that brings the axes at these places to those."""
    order = sorted(range(len(after)), key=lambda role: after[role])
    return tuple(before[role] for role in order)
