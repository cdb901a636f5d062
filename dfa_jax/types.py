"""The vocabulary: the types that name a role at every border of the library."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Key, PyTree

Params = PyTree[Any]
"""Nested dict of trainable arrays, as a Flax module's `init` makes it."""

RuleState = PyTree[Any]
"""What a learning rule carries from step to step: fixed feedback, running estimates, or `()`."""

PRNGKey = Key[Array, ""]
"""A typed JAX key (`jax.random.key`)."""

Metrics = dict[str, Float[Array, ""]]
"""Scalars to report, by name."""

SiteArrays = dict[str, Any]
"""One array per credit site, by the site's name, in forward order."""


class Loss(NamedTuple):
    r"""What a batch costs: the weighted mean of the values, and what is added to it.

        L = sum(weights * values) / sum(weights) + extra

    Attributes:
        values: one number, or an array `[examples, ...]` of any rank; what is told apart along the
            axis of the examples costs a forward gradient less variance.
        weights: like `values`, or of fewer axes behind (`[examples]` for `[examples, time]`), or
            broadcast; at least 0, where 0 leaves out. None: all alike. No derivative is taken.
        extra: a number that belongs to no example, such as an auxiliary loss that the model
            returns.
    """

    values: Array
    weights: Array | None = None
    extra: Array | None = None


LossFn = Callable[[Any, Any], Any]
"""`loss_fn(outputs, targets)`: a `Loss`, or its values alone, whose mean is the objective."""


class Batch(NamedTuple):
    """A minibatch: `inputs` for the model, `targets` for the loss; arrays, or trees of arrays.

    Every array has the examples' axis in front.
    """

    inputs: Any
    targets: Any
