"""Ensembles: each member is the run that it would be alone, on the feedback that all share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.data import GaussianTargets
from dfa_jax.errors import InputError
from dfa_jax.models import MLP
from dfa_jax.optim import Optimizer
from dfa_jax.train import ensemble, fit
from tests.train import small

CONFIG = small.config(
    "direct_feedback_alignment",
    feedback_seed=7,
    alignment_examples=32,
    optimizer=Optimizer("sgd", learning_rate=0.1),
)
SEEDS = (3, 5, 8)


@pytest.fixture(scope="module")
def curves():
    return ensemble.fit_ensemble(CONFIG, SEEDS, num_examples=64)


def test_members_are_the_runs_of_their_seeds(curves):
    """Exact equivalence: weight alignment and norms as `fit` gives them, seed by seed, to 1e-4.

    The order of examples, the start and the feedback are all in these numbers.
    """
    assert curves["step"].tolist() == [0, 4, 8, 12]
    assert curves["epoch"].tolist() == [0, 1, 2, 3]
    for place, seed in enumerate(SEEDS):
        alone = fit(dataclasses.replace(CONFIG, seed=seed), progress=False).record
        for number, point in enumerate(alone.curve, start=1):
            for name in ("weight_alignment/layer_1/Dense_0", "weight_alignment/readout"):
                found = curves[name][number, place]
                np.testing.assert_allclose(found, point.metrics[name], atol=1e-4)


def test_training_error_and_loss(curves):
    """Invariant: both fall from chance; the loss of ten balanced classes starts near log 10."""
    assert curves["train_loss"].shape == curves["train_error"].shape == (4, 3)
    np.testing.assert_allclose(curves["train_loss"][0], np.log(10), atol=0.6)
    assert (curves["train_loss"][-1] < curves["train_loss"][0]).all()


def test_feedback_is_shared_and_weights_are_not():
    """Invariant: one feedback seed, one feedback; the parameters are each seed's own."""
    program, data, _ = ensemble._prepare(CONFIG, SEEDS)
    keys = jnp.stack([jax.random.key(seed) for seed in SEEDS])
    states = ensemble.draw_states(keys, jax.random.key(7), data, program=program)
    for leaf in jax.tree.leaves(states.rule_state):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    kernel = states.params["layer_0"]["Dense_0"]["kernel"]
    assert not np.array_equal(kernel[0], kernel[1])


def test_similarity_is_the_mean_cosine_over_pairs():
    """Independent implementation: NumPy, pair by pair."""
    tree = {"a": np.random.default_rng(0).normal(size=(4, 3, 2)), "b": np.ones((4, 5))}
    vectors = np.concatenate([tree["a"].reshape(4, -1), tree["b"]], 1)
    cosines = [
        vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j])
        for i in range(4)
        for j in range(i)
    ]
    found = ensemble._mean_cosine(jax.tree.map(jnp.asarray, tree))
    np.testing.assert_allclose(found, np.mean(cosines), rtol=1e-5)
    assert ensemble._mean_cosine({"a": jnp.zeros((3, 2))}) == 0


def test_real_valued_targets():
    """Invariant: without classes there is a loss and no error rate, and the loss falls."""
    config = dataclasses.replace(
        CONFIG,
        data=GaussianTargets(num_train=64),
        model=MLP((16, 16), 2, use_bias=False),
        loss="squared_error",
        log_evaluations=3,
    )
    found = ensemble.fit_ensemble(config, (0, 1))
    assert "train_error" not in found
    assert found["step"].tolist() == [0, 1, 3, 12]
    assert (found["train_loss"][-1] < found["train_loss"][0]).all()


@pytest.mark.parametrize(
    ("changes", "seeds", "message"),
    [
        ({}, (), r"seeds are \[\]"),
        ({"feedback_seed": None}, (0,), "feedback_seed is None"),
        (
            {"optimizer": Optimizer("sgd", 1e30), "model": MLP((16, 16), activation="relu")},
            (0,),
            "lower optimizer.learning_rate",
        ),
    ],
)
def test_refused(changes, seeds, message):
    """Documented contract: what is missing, or where the loss stopped being finite."""
    with pytest.raises(InputError, match=message):
        ensemble.fit_ensemble(dataclasses.replace(CONFIG, **changes), seeds)
