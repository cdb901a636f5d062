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

LossFn = Callable[[Any, Any], Array]
"""`loss_fn(outputs, targets)`: one loss per example, `[*batch]`; the objective is their mean."""


class Batch(NamedTuple):
    """A minibatch: `inputs` for the model, `targets` for the loss, both with leading batch axes."""

    inputs: Any
    targets: Any
