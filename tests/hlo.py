"""Matrix products in a compiled program, counted from its text."""

import math
import re
from typing import Any

import jax


def dot_flops(function: Any, *arguments: Any) -> int:
    """Two for each multiply-add of every matrix product that is left in the compiled function.

    Dead code and common subexpressions are gone by then. On a CPU a product is a `dot`, by itself
    or in a fusion of its own; the text names its shapes and contracted axes.
    """
    program = jax.jit(function).lower(*arguments).compile().as_text()
    return count(program)


def count(program: str) -> int:
    """From the program's text: outputs times contracted axes of the left operand, times two."""
    shapes = {
        name: [int(n) for n in dims.split(",") if n]
        for name, dims in re.findall(r"%?([\w.-]+) = \w+\[([\d,]*)\]", program)
    }
    pattern = (
        r"%?([\w.-]+) = \w+\[[\d,]*\]\S* dot\((?:\w+\[[\d,]*\]\S* )?%?([\w.-]+),"
        r".*?lhs_contracting_dims=\{([\d,]*)\}"
    )
    in_loops = [line for line in program.splitlines() if " dot(" in line and "while/body" in line]
    assert not in_loops, "the body of a loop would count once"
    total = 0
    for name, left, axes in re.findall(pattern, program):
        depth = math.prod(shapes[left][int(axis)] for axis in axes.split(",") if axis)
        total += 2 * math.prod(shapes[name]) * depth
    return total
