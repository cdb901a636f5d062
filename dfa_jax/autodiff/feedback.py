r"""Backward passes with random projections in place of transposes, by `jax.custom_vjp`.

`project` is the arithmetic of direct feedback; `collect` is direct feedback alignment for a forward
pass of the user's own, with nothing else of this library.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dfa_jax.types import SiteArrays


def project(error: Array, feedback: Array, num_stack: int = 0) -> Array:
    r"""The projected error `delta_l = e B_l`, in the feedback's precision.

    Args:
        error: `e`, `[*batch, d_e]`.
        feedback: `B_l`, `[*stack, d_e, *features]`.
        num_stack: how many layer axes `feedback` has in front.

    Returns:
        `delta_l`, `[*stack, *batch, *features]`.

    >>> project(jnp.ones((5, 2)), jnp.ones((2, 3))).shape
    (5, 3)
    """
    if num_stack:
        return jax.vmap(lambda layer: project(error, layer, num_stack - 1))(feedback)
    return jnp.tensordot(error.astype(feedback.dtype), feedback, axes=1)


@jax.custom_vjp
def collect(outputs: Array, activities: SiteArrays, feedback: SiteArrays) -> Array:
    r"""Direct feedback alignment as one function: the identity, whose backward feeds every site.

    Forward `y`; backward, from the error `e = dL/dy`: `e` to the outputs and `e B_l` to activity
    `l`. Cut the graph with `jax.lax.stop_gradient` behind each activity, and `jax.grad` does the
    rest.

    Args:
        outputs: `y`, `[*batch, d_y]`.
        activities: `h_l` as recorded before the cut, `[*batch, *features]`.
        feedback: `B_l`, `[d_y, *features]`, by the same names; it gets a zero gradient.

    Source: Nøkland (2016), arXiv 1609.01596.

    >>> def loss(w, x, B):
    ...     h = jnp.tanh(x @ w["hidden"])
    ...     y = jax.lax.stop_gradient(h) @ w["readout"]
    ...     return jnp.square(collect(y, {"hidden": h}, {"hidden": B})).mean()
    >>> w = {"hidden": jnp.ones((3, 4)), "readout": jnp.ones((4, 2))}
    >>> jax.grad(loss)(w, jnp.ones((5, 3)), jnp.zeros((2, 4)))["hidden"].max().item()
    0.0
    """
    del activities, feedback  # only the backward pass reads them
    return outputs


def _collect_forward(outputs, activities, feedback):
    # Zero-sized arrays carry the activities' types to the backward pass at no cost in memory.
    types = {site: jnp.zeros(0, h.dtype) for site, h in activities.items()}
    return outputs, (types, feedback)


def _collect_backward(saved, error):
    types, feedback = saved
    errors = {s: project(error, B).astype(types[s].dtype) for s, B in feedback.items()}
    return error, errors, jax.tree.map(jnp.zeros_like, feedback)


collect.defvjp(_collect_forward, _collect_backward)
