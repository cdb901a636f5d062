"""Feedback in place of transposes, for any model: at the level of the traced program.

The backward pass of a product `y = f(x, W)`, with `W` made of parameters alone, uses `f(., B)^T`,
where `B` is made in the same way of feedback parameters. So a map needs no registration, kernels
may be normalised, shared, sliced or merged before they are used, and it is of no importance which
module, of which library, wrote them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dfa_jax.autodiff.evaluation import Evaluation, Substitute, Used
from dfa_jax.errors import InputError, unknown
from dfa_jax.models.maps import Function, named_leaves, trace
from dfa_jax.tree import Path


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
    program, shapes = trace(function, params, data, rest)
    seconds = [
        jax.lax.stop_gradient(jnp.asarray(feedback[path], leaf.dtype)) if path in feedback else None
        for path, leaf in named_leaves(params)
    ]
    values = jax.tree.leaves((params, data, rest))
    seconds += [None] * (len(values) - len(seconds))
    found, _, used = Evaluation(frozenset(feedback), substitute, keep).run(program, values, seconds)
    return jax.tree.unflatten(jax.tree.structure(shapes), found), used


def _check(params: Any, feedback: Mapping[Path, Any]) -> None:
    """Refuses feedback that is not like a parameter."""
    shapes = {path: jnp.shape(leaf) for path, leaf in named_leaves(params)}
    names = {path: "/".join(path) for path in [*shapes, *feedback]}
    for path, one in feedback.items():
        if path not in shapes:
            raise InputError(unknown("parameter", names[path], [names[p] for p in shapes]))
        if jnp.shape(one) != shapes[path]:
            raise InputError(
                f"the feedback of parameter '{names[path]}' has shape {jnp.shape(one)};"
                f" expected the parameter's, {shapes[path]}"
            )
