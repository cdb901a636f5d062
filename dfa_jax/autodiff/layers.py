"""The layer-parallel backward pass: a loop over blocks that do not wait for each other, at once.

Where the graph is cut behind every block of a scanned stack, no error passes from block to block.
JAX writes the backward pass as a loop over layers all the same, whose carry nobody reads. Such a
loop is one `vmap` of its body, and that is what `in_parallel` makes of it: the residuals that the
scanned forward pass has kept are its arguments, one row a layer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.extend.core import primitives
from jax.sharding import PartitionSpec
from jaxtyping import Array

from dfa_jax.errors import SiteError
from dfa_jax.models.provenance import scan_sizes

LAYER_AXIS = "layer"
"""The axis of a device mesh over which layers are split, where the mesh has it."""


def in_parallel(pull: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same pullback, with every loop whose steps are independent as one `vmap` over steps.

    The result differs by rounding alone. All layers' intermediate values are in memory together.

    Args:
        pull: from `jax.vjp`, of a forward pass that scans over its blocks (`nn.scan`).

    Raises:
        SiteError: when called, if there is no such loop: blocks are written out, or errors pass
            from one to the next.
    """

    def pull_at_once(cotangents: Any) -> Any:
        traced, shapes = jax.make_jaxpr(pull, return_shape=True)(cotangents)
        if not any(_is_independent(one) for one in traced.jaxpr.eqns):
            raise SiteError(
                "backward='layer_parallel' needs a stack of blocks in a loop (nn.scan, of the"
                " Transformer: scan=True) whose graph is cut behind every block, and finds none;"
                " put a site at the blocks' output, or use backward='sequential'"
            )
        found = _evaluate(traced, jax.tree.leaves(cotangents))
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return pull_at_once


def _evaluate(program: core.ClosedJaxpr, arguments: Sequence[Any]) -> list[Array]:
    """What the program returns, equation by equation, with independent loops at once."""
    values = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    values |= dict(zip(program.jaxpr.invars, arguments, strict=True))

    def read(atom: core.Var | core.Literal) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in program.jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if _is_independent(equation):
            found = _at_once(equation.params, inputs)
        else:
            found = _as_written(program.jaxpr, equation, inputs)
        values |= dict(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in program.jaxpr.outvars]


def _is_independent(equation: core.JaxprEqn) -> bool:
    """Whether it is a loop in which no step reads what the step before has handed on."""
    if equation.primitive is not primitives.scan_p:
        return False
    body, (first, number) = equation.params["jaxpr"].jaxpr, scan_sizes(equation.params)
    carries = body.invars[first : first + number]
    read = [*(atom for one in body.eqns for atom in one.invars), *body.outvars]
    return not any(atom is carry for atom in read for carry in carries)


def _as_written(program: core.Jaxpr, equation: core.JaxprEqn, inputs: Sequence[Any]) -> list[Array]:
    """The outputs of an equation of the program."""
    given = {
        atom: value
        for atom, value in zip(equation.invars, inputs, strict=True)
        if not isinstance(atom, core.Literal)
    }
    alone = program.replace(
        constvars=[], invars=list(given), outvars=equation.outvars, eqns=[equation]
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, []))(*given.values())


def _at_once(options: dict[str, Any], inputs: Sequence[Any]) -> list[Array]:
    """All steps of an independent loop, by its equation's options; the last one's carry is its."""
    num_consts, num_carry = scan_sizes(options)
    first_row = num_consts + num_carry
    step = core.jaxpr_as_fun(options["jaxpr"])
    shared, rows = inputs[:first_row], _split(inputs[first_row:])  # rows: [layers, ...] each
    found = jax.vmap(lambda *row: step(*shared, *row))(*rows)
    carried, stacked = found[:num_carry], _split(found[num_carry:])
    last = 0 if options["reverse"] else -1
    return [*(one[last] for one in carried), *stacked]


def _split(rows: Sequence[Array]) -> list[Array]:
    """The same, layers split over the axis of the mesh that is theirs, if there is one."""
    mesh = jax.sharding.get_abstract_mesh()
    if LAYER_AXIS not in mesh.axis_names:
        return list(rows)

    def split(row: Array) -> Array:
        others = [PartitionSpec.UNCONSTRAINED] * (row.ndim - 1)
        return jax.lax.with_sharding_constraint(row, PartitionSpec(LAYER_AXIS, *others))

    return [split(row) for row in rows]
