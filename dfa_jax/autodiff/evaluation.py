"""Evaluation of a traced program with feedback: every weight carries a second value.

The second value is what the program makes of the feedback parameters in place of the parameters.
An equation that no feedback reaches is evaluated as it is; one around other programs (a loop, a
branch, a checkpoint) is rebuilt around what becomes of these.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend import core
from jax.extend.core import primitives
from jaxtyping import Array

from dfa_jax.models import provenance
from dfa_jax.models.provenance import DATA, Kind, Meeting, Program
from dfa_jax.tree import Path

Substitute = Callable[[Array, Array, int], Array]
"""`substitute(W, B, fan_in)`: the matrix whose transpose is used, from the one that is applied."""

Used = dict[Path, tuple[Array, Array]]
"""The weight and the matrix of a parameter's first product."""


class Evaluation(NamedTuple):
    """How programs are evaluated: values beside second values, those of the feedback parameters.

    A second value is None where no parameter with feedback is an owner of the value.
    """

    fed: frozenset[Path]
    substitute: Substitute | None
    keep: bool

    def run(
        self, program: Program, inputs: Sequence[Any], seconds: Sequence[Any]
    ) -> tuple[list[Any], list[Any], Used]:
        """What the program returns, the second values, and the matrices that were used."""
        scope = _Scope(program, inputs, seconds)
        waiting: list[core.JaxprEqn] = []
        used: Used = {}
        for number, equation in enumerate(program.jaxpr.eqns):
            if not self.is_touched(program, number):
                waiting.append(equation)
                continue
            scope.evaluate(waiting)
            waiting = []
            if number in program.inner:
                used = self.recurse(scope, equation, program.inner[number]) | used
            elif met := self.swapped(program, equation):
                used = self.swap(scope, equation, met) | used
            else:
                scope.evaluate([equation])
                scope.evaluate_second(equation, self.kinds_fed(program, equation))
        scope.evaluate(waiting)
        outputs = program.jaxpr.outvars
        return [scope.read(a) for a in outputs], [scope.second(a) for a in outputs], used

    def is_fed(self, kind: Kind) -> bool:
        """Whether feedback makes another value of it."""
        return not self.fed.isdisjoint(kind.owners)

    def kinds_fed(self, program: Program, equation: core.JaxprEqn) -> list[bool]:
        """Which outputs of an equation have a second value."""
        return [self.is_fed(program.kind(atom)) for atom in equation.outvars]

    def swapped(self, program: Program, equation: core.JaxprEqn) -> Meeting | None:
        """How data meets the weight in a product whose transpose is another's, if it is one."""
        met = provenance.meeting(program, equation)
        if met is None or met.how != "product" or self.fed.isdisjoint(met.owners):
            return None
        return met if program.kind(equation.outvars[0]).level == DATA else None

    def is_touched(self, program: Program, number: int) -> bool:
        """Whether feedback changes anything in an equation."""
        equation = program.jaxpr.eqns[number]
        if any(self.kinds_fed(program, equation)):
            return True
        if number in program.inner:
            return any(
                self.is_touched(inner, i)
                for inner in program.inner[number]
                for i in range(len(inner.jaxpr.eqns))
            )
        return self.swapped(program, equation) is not None

    def swap(self, scope: "_Scope", equation: core.JaxprEqn, met: Meeting) -> Used:
        """A product whose error comes back through the second value of its weight."""
        place = equation.invars[met.weight]
        weight = jax.lax.stop_gradient(scope.read(place))
        matrix = scope.second(place)
        if self.substitute is not None:
            matrix = self.substitute(weight, matrix, met.fan_in).astype(weight.dtype)
        matrix = jax.lax.stop_gradient(matrix)
        scope.write(equation, [_product(scope, equation, met.weight, matrix)])
        return dict.fromkeys(met.owners & self.fed, (weight, matrix)) if self.keep else {}

    def recurse(self, scope: "_Scope", equation: core.JaxprEqn, inner: tuple[Program, ...]) -> Used:
        """An equation around programs, rebuilt around what becomes of these."""
        values = [scope.read(atom) for atom in equation.invars]
        seconds = [scope.second(atom) for atom in equation.invars]
        fed = self.kinds_fed(scope.program, equation)
        rebuild = _REBUILT[equation.primitive]
        found, second, used = rebuild(self, equation.params, inner, values, seconds, fed)
        scope.write(equation, found, second)
        return used


class _Scope:
    """The values, and second values, of the variables of a program."""

    def __init__(self, program: Program, inputs: Sequence[Any], seconds: Sequence[Any]):
        self.program = program
        jaxpr = program.jaxpr
        self.values = dict(zip(jaxpr.constvars, program.consts, strict=True))
        self.values |= dict(zip(jaxpr.invars, inputs, strict=True))
        self.seconds = {
            atom: one for atom, one in zip(jaxpr.invars, seconds, strict=True) if one is not None
        }

    def read(self, atom: core.Var | core.Literal) -> Any:
        return atom.val if isinstance(atom, core.Literal) else self.values[atom]

    def second(self, atom: core.Var | core.Literal) -> Any:
        return None if isinstance(atom, core.Literal) else self.seconds.get(atom)

    def write(
        self, equation: core.JaxprEqn, found: Sequence[Any], seconds: Sequence[Any] = ()
    ) -> None:
        self.values |= dict(zip(equation.outvars, found, strict=True))
        self.seconds |= {
            atom: one
            for atom, one in zip(equation.outvars, seconds, strict=False)
            if one is not None
        }

    def evaluate(self, equations: Sequence[core.JaxprEqn]) -> None:
        """Equations as they are."""
        if equations:
            run, reads, writes = _alone(self.program.jaxpr, equations)
            found = run(*(self.values[atom] for atom in reads))
            self.values |= dict(zip(writes, found, strict=True))

    def evaluate_second(self, equation: core.JaxprEqn, fed: Sequence[bool]) -> None:
        """An equation on second values, where there are some."""
        run, reads, writes = _alone(self.program.jaxpr, [equation])
        found = run(*(self.seconds.get(atom, self.values[atom]) for atom in reads))
        wanted = {atom for atom, is_fed in zip(equation.outvars, fed, strict=True) if is_fed}
        self.seconds |= {
            atom: one for atom, one in zip(writes, found, strict=True) if atom in wanted
        }


def _alone(
    jaxpr: core.Jaxpr, equations: Sequence[core.JaxprEqn]
) -> tuple[Callable[..., list[Any]], list[core.Var], list[core.Var]]:
    """Equations of a program as a function, the variables that it takes, and that it returns."""
    writes = [
        atom for one in equations for atom in one.outvars if not isinstance(atom, core.DropVar)
    ]
    inside = set(writes)
    reads = dict.fromkeys(
        atom
        for one in equations
        for atom in one.invars
        if not isinstance(atom, core.Literal) and atom not in inside
    )
    alone = jaxpr.replace(constvars=[], invars=list(reads), outvars=writes, eqns=list(equations))
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, [])), list(reads), writes


def _product(scope: _Scope, equation: core.JaxprEqn, place: int, matrix: Array) -> Array:
    """A product whose derivative by its data uses `matrix` in place of the weight at `place`."""
    run, reads, _ = _alone(scope.program.jaxpr, [equation])
    values: dict[Any, Any] = {atom: scope.values[atom] for atom in reads}  # sizes of groups too
    of_data, of_weight = equation.invars[1 - place], equation.invars[place]

    def apply(x: Any, weight: Any) -> Array:
        given = values | {of_data: x, of_weight: weight}
        return run(*(given[atom] for atom in reads))[0]

    @jax.custom_jvp
    def product(x, weight, matrix):
        del matrix  # only the backward pass reads it
        return apply(x, weight)

    def product_jvp(primals, tangents):
        x, weight, matrix = primals
        x_dot, weight_dot, _ = tangents
        y = apply(x, weight)
        terms = []
        if not isinstance(weight_dot, SymbolicZero):
            terms.append(apply(x, weight_dot))
        if not isinstance(x_dot, SymbolicZero):
            terms.append(apply(x_dot, matrix))
        return y, functools.reduce(jnp.add, terms) if terms else jnp.zeros_like(y)

    product.defjvp(product_jvp, symbolic_zeros=True)
    return product(values[of_data], values[of_weight], matrix)


Rebuilt = tuple[Sequence[Any], Sequence[Any], Used]


def _aligned(values: Sequence[Any], seconds: Sequence[Any], fed: Sequence[bool]) -> list[Any]:
    """A second value for each that is to have one: its own, where feedback did not reach it."""
    return [
        (value if second is None else second) if is_fed else None
        for value, second, is_fed in zip(values, seconds, fed, strict=True)
    ]


def _call(how, options, inner, values, seconds, fed) -> Rebuilt:
    """`jax.jit` in a program."""

    def run(values, seconds):
        return how.run(inner[0], values, seconds)

    run.__name__ = options.get("name", "call")  # profiles show it
    return jax.jit(run)(values, seconds)


def _remat(how, options, inner, values, seconds, fed) -> Rebuilt:
    run = functools.partial(how.run, inner[0])
    kept = {name: options[name] for name in ("policy", "prevent_cse")}
    return jax.checkpoint(run, **kept)(values, seconds)


def _cond(how, options, inner, values, seconds, fed) -> Rebuilt:
    def branch(program):
        def run(values, seconds):
            found, second, _ = how.run(program, values, seconds)
            return found, _aligned(found, second, fed)

        return run

    index, *operands = values
    branches = [branch(program) for program in inner]
    platforms = options.get("branches_platforms")
    if platforms is None:
        found, second = jax.lax.switch(index, branches, operands, seconds[1:])
        return found, second, {}
    by_name = {
        name: run
        for names, run in zip(platforms, branches, strict=True)
        for name in names or ("default",)
    }
    found, second = jax.lax.platform_dependent(operands, seconds[1:], **by_name)
    return found, second, {}


def _scan(how, options, inner, values, seconds, fed) -> Rebuilt:
    num_consts, num_carry = provenance.scan_sizes(options)
    carried = slice(num_consts, num_consts + num_carry)
    fed_carry = fed[:num_carry]

    def body(carry, row):
        given, second = ([*c, *x] for c, x in zip(carry, row, strict=True))
        found, second, used = how.run(
            inner[0], [*values[:num_consts], *given], [*seconds[:num_consts], *second]
        )
        after = found[:num_carry], _aligned(found[:num_carry], second[:num_carry], fed_carry)
        return after, (found[num_carry:], second[num_carry:], used)

    first = values[carried], _aligned(values[carried], seconds[carried], fed_carry)
    rows = values[carried.stop :], seconds[carried.stop :]
    kept = {name: options[name] for name in ("length", "reverse", "unroll")}
    (last, last_seconds), (stacked, stacked_seconds, used) = jax.lax.scan(body, first, rows, **kept)
    return [*last, *stacked], [*last_seconds, *stacked_seconds], used


_REBUILT = {
    primitives.jit_p: _call,
    primitives.closed_call_p: _call,
    primitives.remat_p: _remat,
    primitives.cond_p: _cond,
    primitives.scan_p: _scan,
}
