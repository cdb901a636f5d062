"""Branches whose rate decays, and runs that take their steps together.

A scaling-law study trusts both: that a branch says what the run would have reached had it ended
there, without the run feeling it; and that training several runs at once changes none of them.
"""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from dfa_jax.errors import InputError
from dfa_jax.optim import Optimizer
from dfa_jax.train import fit, loop
from dfa_jax.train.loop import fit_together
from tests import helpers
from tests.train import small

RULE = "direct_feedback_alignment"
PLAIN = Optimizer("sgd", learning_rate=0.1, momentum=0.9)
RATES, SEEDS = (0.1, 0.03, 0.1), (0, 0, 1)


def members(**changes):
    """Three runs that differ in rate or seed."""
    return [
        small.config(
            RULE,
            optimizer=dataclasses.replace(PLAIN, learning_rate=rate),
            seed=seed,
            num_epochs=2,
            **changes,
        )
        for rate, seed in zip(RATES, SEEDS, strict=True)
    ]


def test_rate_factors_are_a_schedule():
    """Exact equivalence: factors 1, 0.8, ... 0.2 are Optax's linear schedule over five steps, also
    for Adam, whose moments must not feel them."""
    constant, linear = (
        small.program(small.config(RULE, optimizer=Optimizer("adam", 0.01, schedule=schedule)), on)
        for schedule, on in (("constant", small.mesh()), ("linear", small.mesh()))
    )
    linear = dataclasses.replace(linear, num_steps=5)
    rows, factors = small.order(5), np.float32([1, 0.8, 0.6, 0.4, 0.2])
    data = small.data(constant.mesh)
    ours, _ = loop.run_steps(small.state(constant), data, rows, 5, factors, program=constant)
    theirs, _ = loop.run_steps(small.state(linear), data, rows, 5, program=linear)
    helpers.assert_close(ours.params, theirs.params, 1e-6)


def test_branch_is_a_run_that_ends_there():
    """Exact equivalence: the branch at the first evaluation of six is a run of its own with a
    constant rate up to there and factors down to zero behind it, on the same batches; the run that
    branched is bit-identical to one that did not."""
    config = small.config(RULE, optimizer=PLAIN, num_epochs=6)
    branched = fit(dataclasses.replace(config, decay_fraction=0.5), progress=False)
    straight = fit(config, progress=False)
    helpers.assert_identical(small.plain(branched.state), small.plain(straight.state))
    ends = np.array([point.step for point in branched.record.curve])
    steps = np.array([point.metrics["decayed_steps"] for point in branched.record.curve])
    np.testing.assert_array_equal(steps, ends / 2)

    source = loop.EpochShuffle(64, 16, config.seed)
    program = small.program(config, small.mesh(8))
    data = small.data(program.mesh)
    state = small.state(program)
    state, _ = loop.run_steps(state, data, source.indices(0, 4), 4, program=program)
    factors = np.float32([1, 0.5])
    state, _ = loop.run_steps(state, data, source.indices(4, 2), 2, factors, program=program)
    tested = jax.device_put(small.DIGITS.load().test)
    wanted = loop.evaluate(state.params, tested, program=program)["loss"]
    found = branched.record.curve[0].metrics["decayed_test_loss"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert found != branched.record.curve[0].test_loss


def test_together_is_alone():
    """Exact equivalence: each of three runs that train together is the run by itself, up to the
    order of float32 sums under `vmap`."""
    for config, result in zip(members(), fit_together(members(), progress=False), strict=True):
        alone = fit(config, progress=False)
        helpers.assert_close(result.state.params, alone.state.params, 1e-4)
        for ours, theirs in zip(result.record.curve, alone.record.curve, strict=True):
            assert ours.step == theirs.step
            np.testing.assert_allclose(ours.test_loss, theirs.test_loss, rtol=1e-4)
            np.testing.assert_allclose(ours.train_loss, theirs.train_loss, rtol=1e-4)
        assert result.record.config == alone.record.config


def test_together_goes_on_bit_for_bit(tmp_path):
    """Exact equivalence: stopped when the first had written its last checkpoint and the others had
    not, all go back to the last step that everyone has, and end as if undisturbed."""
    folders = [tmp_path / str(number) for number in range(3)]
    whole = fit_together(members(), run_dirs=folders, progress=False)
    for folder in folders[1:]:
        shutil.rmtree(folder / "checkpoints" / "8")
    again = fit_together(members(), run_dirs=folders, resume=True, progress=False)
    for first, second in zip(whole, again, strict=True):
        helpers.assert_identical(small.plain(first.state), small.plain(second.state))
        curve = small.without_time(first.record.curve)
        assert small.without_time(second.record.curve) == curve
    lines = (folders[0] / "curve.jsonl").read_text().splitlines()
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 32}, "differ in batch_size: 16 -> 32"),
        ({"decay_fraction": 0.1}, "differ in decay_fraction: 0.0 -> 0.1"),
    ],
)
def test_runs_that_differ_otherwise_are_refused(change, message):
    """Documented contract: one program serves all, so only seeds and rates may differ."""
    first, second, _ = members()
    with pytest.raises(InputError, match=message):
        fit_together([first, dataclasses.replace(second, **change)], progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decay_fraction": 1.5}, "decay_fraction is 1.5; expected 0 to 1"),
        ({"decay_fraction": 0.1}, "decay_fraction is 0.1 and optimizer.schedule is 'cosine'"),
        ({"num_tokens": -1}, "num_tokens is -1; expected at least 0"),
        ({"num_tokens": 100}, "num_tokens is 100 and data is ImageData, which has no tokens"),
    ],
)
def test_refusals(change, message):
    """Documented contract: before any work, the value, what was expected, and the remedy."""
    with pytest.raises(InputError, match=message):
        fit(small.config(**change), progress=False)
