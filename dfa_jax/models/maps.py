"""The linear maps of a model: parameters in whose products errors travel, whoever wrote them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfa_jax.models import provenance
from dfa_jax.models.provenance import DATA, INDEX, Kind, Program
from dfa_jax.tree import Path

Function = Callable[[Any, Any, Any], Any]
"""`function(params, data, rest)`: of a nested dict, of a batch, and of all that is neither.

A batch has to come in as `data`: what is in `rest`, or closed over, counts as constant, and a
product of a parameter by a constant is a weight, whose own transpose stays.
"""


class LinearMap(NamedTuple):
    """A parameter whose products carry data.

    Attributes:
        path: of the parameter.
        fan_in: how many numbers are summed for one output, where it is first used.
    """

    path: Path
    fan_in: int

    @property
    def name(self) -> str:
        """The path in one word; without `kernel`, that of the submodule."""
        path = self.path[:-1] if self.path[-1] == "kernel" and self.path[1:] else self.path
        return "/".join(path)


class Found(NamedTuple):
    """The parameters that data meets.

    Attributes:
        maps: those in products, in order of first use.
        entrywise: those that multiply or divide activations entry by entry, and an error passes.
        opaque: those that meet activations where nobody can look, and an error passes.
        merged: those multiplied by one another before data meets the result, which is one weight:
            a low-rank sum, or a learned query. Among themselves, errors pass by true transposes.
    """

    maps: tuple[LinearMap, ...]
    entrywise: tuple[Path, ...]
    opaque: tuple[Path, ...]
    merged: tuple[Path, ...]


def find_maps(
    function: Function,
    params: Any,
    data: Any,
    rest: Any,
    num_stack: Callable[[Path], int] = lambda path: 0,
) -> tuple[Found, Any]:
    """The parameters through which errors travel, and what the function returns, without numbers.

    Nothing is computed, abstract arrays will do. Of the parameters that a product's weight is made
    of, those are its maps that are matrices (`kernel`, not the `scale` that normalises it), if any
    is one.

    Args:
        function: of the parameters, a batch and the rest.
        params: a nested dict.
        data: the batch.
        rest: all that is neither.
        num_stack: layer axes in front of a parameter.

    >>> W = {"W": jnp.ones((3, 2))}
    >>> find_maps(lambda params, x, rest: x @ params["W"], W, jnp.ones((5, 3)), None)[0].maps
    (LinearMap(path=('W',), fan_in=3),)
    """
    program, shapes = trace(function, params, data, rest)
    axes = {path: jnp.ndim(leaf) - num_stack(path) for path, leaf in named_leaves(params)}
    fan_ins: dict[Path, int] = {}
    others: dict[str, dict[Path, None]] = {"entrywise": {}, "opaque": {}, "merged": {}}
    order = {path: i for i, path in enumerate(axes)}
    for met in provenance.meetings(program):
        owners = sorted(met.owners, key=order.__getitem__)
        if met.how == "product":
            owners = [path for path in owners if axes[path] > 1] or owners
            fan_ins |= {path: met.fan_in for path in owners if path not in fan_ins}
        elif met.error_passes:
            others[met.how] |= dict.fromkeys(owners)
    maps = tuple(LinearMap(*found) for found in fan_ins.items())
    return Found(maps, **{how: tuple(paths) for how, paths in others.items()}), shapes


def named_leaves(params: Any) -> list[tuple[Path, Any]]:
    """The parameters by path, in the order of the tree's leaves."""
    return [
        (tuple(key.key for key in path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def trace(function: Function, params: Any, data: Any, rest: Any) -> tuple[Program, Any]:
    """The function's program, analysed, and what it returns, without numbers."""
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(params, data, rest)
    kinds = [_kind_of_parameter(path, leaf) for path, leaf in named_leaves(params)]
    kinds += [_kind_of_data(leaf) for leaf in jax.tree.leaves(data)]
    kinds += [Kind() for _ in jax.tree.leaves(rest)]
    return provenance.analyse(traced, kinds), shapes


def _kind_of_parameter(path: Path, leaf: Any) -> Kind:
    trained = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    return Kind(owners=frozenset([path]), learns=True) if trained else Kind()


def _kind_of_data(leaf: Any) -> Kind:
    kind = jnp.result_type(leaf)
    if jnp.issubdtype(kind, jax.dtypes.prng_key):
        return Kind()
    return Kind(DATA if jnp.issubdtype(kind, jnp.inexact) else INDEX)
