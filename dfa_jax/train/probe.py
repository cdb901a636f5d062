"""`linear_probe`: how well a linear classifier reads the classes off frozen features."""

import functools
import math
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from dfa_jax.autodiff.loops import loop_body
from dfa_jax.errors import InputError, require
from dfa_jax.models import Model
from dfa_jax.train.readout import READOUT_PLACE, features, place_readout
from dfa_jax.types import Batch, Params

_BATCH = 500
_MAX_ITERATIONS = 1000
_TOLERANCE = 1e-5  # of the largest entry of the gradient of the mean loss


class Probe(NamedTuple):
    """What the probe classifies correctly.

    Attributes:
        train_accuracy: fraction of the examples that it was fitted to.
        test_accuracy: fraction of those that it was not.
        is_converged: whether the fit ended at its minimum.
    """

    train_accuracy: float
    test_accuracy: float
    is_converged: bool


def linear_probe(
    model: Model,
    params: Params,
    train: Batch,
    test: Batch,
    *,
    model_state: Any = (),
    place: str = READOUT_PLACE,
    l2: float = 1e-4,
) -> Probe:
    r"""Fits a multinomial logistic regression to features, and applies it to others.

        min_{W,b}  mean_n -log softmax(z_n W + b)[t_n] + l2/2 |W|^2

    by L-BFGS (scikit-learn). `z` are the features at zero mean and unit deviation, both of the
    training examples; a feature that is constant there is zero.

    Args:
        model: any trained model.
        params: its parameters; nothing moves them.
        train: inputs and integer targets `[n]` to fit to.
        test: those to measure on.
        model_state: its other variables, if it has any.
        place: whose activity the features are, named as a credit site.
        l2: weight decay, at least so large that there is one minimum.

    Raises:
        InputError: no such place, `l2` is not positive, targets are no labels, or those of `train`
            are all the same; or a feature is not finite.

    >>> import jax.numpy as jnp
    >>> from dfa_jax.models import MLP, from_linen
    >>> x = jnp.linspace(-1, 1, 8)[:, None]
    >>> model = from_linen(MLP((4,), 2), "layer_0", x)
    >>> batch = Batch(x, np.arange(8) // 4)
    >>> linear_probe(model, model.init(jax.random.key(0), x), batch, batch).test_accuracy
    1.0
    """
    require("train", "linear_probe", "sklearn")
    from sklearn.exceptions import ConvergenceWarning  # slow to import
    from sklearn.linear_model import LogisticRegression

    if not (l2 > 0 and math.isfinite(l2)):
        raise InputError(f"l2 is {l2}; expected a positive number")
    labels, test_labels = (_labels(batch.targets) for batch in (train, test))
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"all training examples of the probe have the label {labels[:1]}; expected at least two"
            " classes"
        )
    at = place_readout(model, place)
    seen, test_seen = (
        np.asarray(_all_features(at, params, model_state, batch.inputs)) for batch in (train, test)
    )
    if not (np.isfinite(seen).all() and np.isfinite(test_seen).all()):
        raise InputError(f"features at '{place}' are not finite; the model has diverged")
    mean, deviation = seen.mean(0, np.float64), seen.std(0, dtype=np.float64)
    constant = deviation <= 1e-6 * np.maximum(np.abs(mean), np.finfo(np.float32).tiny)
    scale = np.where(constant, 0, 1 / np.where(constant, 1, deviation))
    z, test_z = (((x - mean) * scale).astype(np.float32) for x in (seen, test_seen))
    fit = LogisticRegression(C=1 / (l2 * len(z)), tol=_TOLERANCE, max_iter=_MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `is_converged` says it
        fit.fit(z, labels)
    right = np.equal(fit.predict(z), labels)
    test_right = np.equal(fit.predict(test_z), test_labels)
    is_converged = int(fit.n_iter_.max()) < _MAX_ITERATIONS
    return Probe(float(right.mean()), float(test_right.mean()), is_converged)


def _labels(targets: Any) -> np.ndarray:
    labels = np.asarray(targets)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"targets are {labels.dtype} {labels.shape}; a probe expects one integer label an"
            " example"
        )
    return labels


@functools.partial(jax.jit, static_argnames="at")
def _all_features(at: Model, params: Params, model_state: Any, inputs: Array) -> Array:
    """Of a whole set, a batch at a time; the last one is filled up with the last example."""
    number = len(inputs)
    at_once = min(_BATCH, number)
    rows = np.minimum(np.arange(math.ceil(number / at_once) * at_once), number - 1)

    def some(rows: Array) -> Array:
        return features(at.bind(model_state, train=False), params, inputs[rows])

    found = jax.lax.map(loop_body(some), rows.reshape(-1, at_once))
    return found.reshape(len(rows), -1)[:number]
