"""Direct random target projection: the target, and nothing else, reaches the hidden layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.errors import InputError
from dfa_jax.rules import DirectRandomTargetProjection
from dfa_jax.types import Loss
from tests import helpers, reference


def test_gradients_match_numpy(x64):
    """Independent implementation: `onehot B_l / N` in NumPy, every gradient to 1e-12."""
    case = helpers.mlp()
    x, labels = case.batch
    rule = DirectRandomTargetProjection()
    params, state = helpers.started(rule, case)
    expected = reference.direct(
        params,
        [np.asarray(state[site]) for site in case.model.sites],
        x,
        lambda y: (np.eye(3)[labels] / len(y), reference.output_error(y, labels)),
        "tanh",
    )
    helpers.assert_close(helpers.estimate(rule, case, params, state).grads, expected, 1e-12)


def test_a_target_counts_by_its_weight(x64):
    """Independent implementation: NumPy, with the share of each example's weight in the sum in place of
    `1 / N`. What a mask leaves out, as padding, must teach nothing."""
    case = helpers.mlp()
    x, labels = case.batch
    weights = np.arange(len(labels)) % 4
    shares = (weights / weights.sum())[:, None]
    rule = DirectRandomTargetProjection()
    params, state = helpers.started(rule, case)
    expected = reference.direct(
        params,
        [np.asarray(state[site]) for site in case.model.sites],
        x,
        lambda y: (np.eye(3)[labels] * shares, reference.output_error(y, labels) * len(y) * shares),
        "tanh",
    )

    def loss(outputs, targets):
        return Loss(helpers.LOSS(outputs, targets), jnp.asarray(weights))

    found = helpers.estimate(rule, case, params, state, loss=loss)
    helpers.assert_close(found.grads, expected, 1e-12)


@pytest.mark.parametrize("case", [helpers.mlp, helpers.scanned])
def test_hidden_gradients_do_not_depend_on_the_output_error(case):
    """Invariant: another readout changes every error and no bit of a hidden gradient.

    That no layer waits for the outputs is the rule's whole point.
    """
    case = case()
    rule = DirectRandomTargetProjection()
    params, state = helpers.started(rule, case)
    moved = params | {"readout": jax.tree.map(lambda leaf: 2 * leaf + 1, params["readout"])}
    run = helpers.estimator(rule, case)
    before, after = run(params, state), run(moved, state)
    assert np.abs(after.outputs - before.outputs).max() > 1
    readout = before.grads.pop("readout"), after.grads.pop("readout")
    helpers.assert_identical(after.grads, before.grads)
    assert np.abs(readout[0]["kernel"] - readout[1]["kernel"]).max() > 1e-3


def test_regression_targets_are_refused():
    """Documented contract: there is no one-hot of a real number; silence would train on nonsense."""
    case = helpers.mlp()
    batch = case.batch._replace(targets=jnp.zeros((16, 3)))
    with pytest.raises(InputError, match="integer labels"):
        DirectRandomTargetProjection().init(jax.random.key(0), case.model, case.params, batch)
