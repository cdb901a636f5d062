"""Feedback in place of transposes, for any model: at the level of the traced program.

The backward pass of a product `y = f(x, W)`, with `W` made of parameters alone, uses `f(., B)^T`,
where `B` is made in the same way of feedback parameters. So a map needs no registration, kernels
may be normalised, shared, sliced or merged before they are used, and it is of no importance which
module, of which library, wrote them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfa_jax.autodiff import provenance
from dfa_jax.autodiff.evaluation import Evaluation, Substitute, Used
from dfa_jax.autodiff.provenance import DATA, INDEX, Kind, Program
from dfa_jax.errors import InputError, unknown
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


def find_maps(function: Function, params: Any, data: Any, rest: Any) -> Found:
    """The parameters through which errors travel; nothing is computed, abstract arrays will do.

    >>> W = {"W": jnp.ones((3, 2))}
    >>> find_maps(lambda params, x, rest: x @ params["W"], W, jnp.ones((5, 3)), None).maps
    (LinearMap(path=('W',), fan_in=3),)
    """
    program, _ = _trace(function, params, data, rest)
    fan_ins: dict[Path, int] = {}
    others: dict[str, dict[Path, None]] = {"entrywise": {}, "opaque": {}, "merged": {}}
    order = {path: i for i, (path, _) in enumerate(_leaves(params))}
    for met in provenance.meetings(program):
        owners = sorted(met.owners, key=order.__getitem__)
        if met.how == "product":
            fan_ins |= {path: met.fan_in for path in owners if path not in fan_ins}
        elif met.error_passes:
            others[met.how] |= dict.fromkeys(owners)
    maps = tuple(LinearMap(*found) for found in fan_ins.items())
    return Found(maps, **{how: tuple(paths) for how, paths in others.items()})


def with_feedback(
    function: Function,
    params: Any,
    data: Any,
    rest: Any,
    feedback: Mapping[Path, Any],
    substitute: Substitute | None = None,
) -> Any:
    """`function(params, data, rest)`, whose errors come back through feedback parameters.

    The result is the function's to the bit, and can be differentiated in all three, forwards and
    backwards. A product gives its weight the true gradient, of the error that arrives, and the
    other factor the error by the transpose of what feedback makes of the weight.

    Args:
        feedback: an array like the parameter, by its path; a parameter without one keeps its own
            value. It is held fixed: it gets no gradient.
        substitute: makes the matrix that is used of the weight as it is applied, and of what is
            made in the same way of feedback; by default it is the latter.

    Raises:
        InputError: feedback for a parameter that does not exist, or of another shape.

    >>> def f(params, x, rest):
    ...     return (x @ params["W"]).sum()
    >>> W = {"W": jnp.ones((2, 1))}
    >>> jax.grad(lambda x: with_feedback(f, W, x, None, {("W",): jnp.zeros((2, 1))}))(jnp.ones(2))
    Array([0., 0.], dtype=float32)
    """
    return _evaluate(function, params, data, rest, feedback, substitute, keep=False)[0]


def with_matrices(
    function: Function,
    params: Any,
    data: Any,
    rest: Any,
    feedback: Mapping[Path, Any],
    substitute: Substitute | None = None,
) -> tuple[Any, Used]:
    """As `with_feedback`, and of each parameter the weight and the matrix of its first product.

    Those of a loop have its axis in front; those inside of a branch are left out.
    """
    return _evaluate(function, params, data, rest, feedback, substitute, keep=True)


def _evaluate(
    function: Function,
    params: Any,
    data: Any,
    rest: Any,
    feedback: Mapping[Path, Any],
    substitute: Substitute | None,
    keep: bool,
) -> tuple[Any, Used]:
    _check(params, feedback)
    program, structure = _trace(function, params, data, rest)
    seconds = [
        jax.lax.stop_gradient(jnp.asarray(feedback[path], leaf.dtype)) if path in feedback else None
        for path, leaf in _leaves(params)
    ]
    values = jax.tree.leaves((params, data, rest))
    seconds += [None] * (len(values) - len(seconds))
    found, _, used = Evaluation(frozenset(feedback), substitute, keep).run(program, values, seconds)
    return jax.tree.unflatten(structure, found), used


def _leaves(params: Any) -> list[tuple[Path, Any]]:
    """The parameters by path, in the order of the tree's leaves."""
    return [
        (tuple(key.key for key in path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def _check(params: Any, feedback: Mapping[Path, Any]) -> None:
    """Refuses feedback that is not like a parameter."""
    shapes = {path: jnp.shape(leaf) for path, leaf in _leaves(params)}
    names = {path: "/".join(path) for path in [*shapes, *feedback]}
    for path, one in feedback.items():
        if path not in shapes:
            raise InputError(unknown("parameter", names[path], [names[p] for p in shapes]))
        if jnp.shape(one) != shapes[path]:
            raise InputError(
                f"the feedback of parameter '{names[path]}' has shape {jnp.shape(one)};"
                f" expected the parameter's, {shapes[path]}"
            )


def _trace(function: Function, params: Any, data: Any, rest: Any) -> tuple[Program, Any]:
    """The function's program, analysed, and the structure of what it returns."""
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(params, data, rest)
    kinds = [_kind_of_parameter(path, leaf) for path, leaf in _leaves(params)]
    kinds += [_kind_of_data(leaf) for leaf in jax.tree.leaves(data)]
    kinds += [Kind() for _ in jax.tree.leaves(rest)]
    return provenance.analyse(traced, kinds), jax.tree.structure(shapes)


def _kind_of_parameter(path: Path, leaf: Any) -> Kind:
    trained = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    return Kind(owners=frozenset([path]), learns=True) if trained else Kind()


def _kind_of_data(leaf: Any) -> Kind:
    kind = jnp.result_type(leaf)
    if jnp.issubdtype(kind, jax.dtypes.prng_key):
        return Kind()
    return Kind(DATA if jnp.issubdtype(kind, jnp.inexact) else INDEX)
