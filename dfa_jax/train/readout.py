"""A linear classifier that looks on: learned beside a run, on features it does not touch."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dfa_jax import metrics
from dfa_jax.autodiff import sites
from dfa_jax.errors import InputError, SiteError
from dfa_jax.losses import softmax_cross_entropy
from dfa_jax.models import Model
from dfa_jax.types import Batch, Metrics, Params

READOUT_PLACE = "readout:input"
"""What goes into the submodule that the library's models call `readout`."""


@dataclasses.dataclass(frozen=True)
class OnlineReadout:
    r"""A linear classifier on the features of a contrastive run.

        W <- W - eta / (1 + mean_n |h_n|^2) h^T (p - onehot) / N,    p = softmax(h W + b)

    a step a batch, so that one rate serves features of every width.

    Attributes:
        learning_rate: of its gradient descent, `eta`, relative to the features' squared length.
        place: whose activity the features are, named as a credit site: `NAME` for the output of a
            submodule, `NAME:input` for its input.
    """

    learning_rate: float = 1.0
    place: str = READOUT_PLACE

    def __post_init__(self):
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise InputError(
                f"readout.learning_rate is {self.learning_rate}; expected a positive finite number"
            )


@dataclasses.dataclass(frozen=True)
class Readout:
    """A linear classifier at a place of a model, as pure functions of its kernel and bias.

    Attributes:
        at: the module with the place as its only site.
        num_classes: outputs.
        learning_rate: as in `OnlineReadout`.
    """

    at: Model
    num_classes: int
    learning_rate: float

    def init(self, model: Model, params: Params, inputs: Array) -> Params:
        """Zeros; of the arguments only shapes are read."""
        seen = jax.eval_shape(lambda p, x: features(self._in(model), p, x), params, inputs)
        kernel = jnp.zeros((seen.shape[-1], self.num_classes))
        return {"kernel": kernel, "bias": jnp.zeros(self.num_classes)}

    def logits(
        self, readout: Params, model: Model, params: Params, inputs: Array
    ) -> Float[Array, "batch classes"]:
        """`h W + b`, with `h` the features of a bound model; no derivative reaches `params`."""
        return self._classify(readout, features(self._in(model), params, inputs))

    def step(
        self, readout: Params, model: Model, params: Params, batch: Batch
    ) -> tuple[Params, Metrics]:
        """One step down the softmax cross-entropy; loss and accuracy are those before it."""
        seen = features(self._in(model), params, batch.inputs)

        def objective(readout: Params) -> tuple[Array, Array]:
            logits = self._classify(readout, seen)
            return softmax_cross_entropy(logits, batch.targets).mean(), logits

        (loss, logits), grads = jax.value_and_grad(objective, has_aux=True)(readout)
        rate = self.learning_rate / (1 + jnp.square(seen).sum(-1).mean())
        moved = jax.tree.map(lambda w, g: w - rate * g, readout, grads)
        return moved, {"loss": loss, "accuracy": metrics.correct(logits, batch.targets).mean()}

    def _in(self, model: Model) -> Model:
        """The place, for the pass that the model is bound for."""
        return self.at.bind(model.state, key=model.key, train=model.train)

    def _classify(self, readout: Params, seen: Array) -> Array:
        return seen @ readout["kernel"] + readout["bias"][None]


def place_readout(model: Model, place: str) -> Model:
    """The model with the place as its only site.

    Raises:
        InputError: the module has no such place, or it is not one place outside of a stack.
    """
    try:
        at = model.at(place)
    except SiteError as error:
        kind = type(model.module).__name__
        raise InputError(f"no readout at '{place}' of {kind}: {error}") from error
    if len(at.sites) > 1 or at.places[0].stack:
        found = at.sites if len(at.sites) > 1 else "a stack of layers"
        raise InputError(
            f"the place of the readout is '{place}', which is {found}; expected one submodule"
        )
    return at


def features(at: Model, params: Params, inputs: Array) -> Float[Array, "batch feature"]:
    """The activity at a bound model's only site, flat, in single precision at least.

    No derivative passes it.
    """
    _, found = sites.activities(at, params, inputs)
    h = jax.lax.stop_gradient(found[at.sites[0]]).reshape(len(inputs), -1)
    return h.astype(jnp.promote_types(h.dtype, jnp.float32))
