"""The verdict on arms whose frontiers are planted power laws."""

import jax
import numpy as np
import pytest

from dfa_jax.errors import InputError
from dfa_jax.scaling import LAWS, Run, describe, judge, verdict

BUDGETS = (1e13, 1e15, 1e18)


def arm(name, alpha, C_c=1e24, noise=0.0, seed=0, num_seeds=3, factor=6.0):
    """A ladder that takes turns on `(C_c / C)^alpha`: each size is flat before and after its decade.

    So the envelope of 6 ND counts is the power law itself.
    """
    rng, found = np.random.default_rng(seed), []
    for i in range(5):
        for s in range(num_seeds):
            C = np.geomspace(1e12 * 10**i, 1e13 * 10**i, 6)
            losses = (C_c / C) ** alpha * np.exp(noise * rng.normal())
            N = 10 ** (5 + i / 2)
            found += [
                Run(name, f"size_{i}", int(N), round(c / 6 / N), c * factor / 6, float(loss), s)
                for c, loss in zip(C, losses, strict=True)
            ]
    return found


def conventions(ours, theirs):
    """6 ND for both; 4 ND and 2 ND for the arm."""
    return {
        f"{k}ND": theirs + [run._replace(flops=run.flops * k / 6) for run in ours]
        for k in (6, 4, 2)
    }


def judged(ours, theirs, **options):
    options = {"arm": "dfa", "num_samples": 100} | options
    return judge(jax.random.key(0), conventions(ours, theirs), BUDGETS, **options)


def test_discounts_are_those_of_the_planted_laws():
    """Closed form: `C_arm / C = C_c,arm / C (C / C_c,bp)^(alpha_bp / alpha_arm)` at equal loss.

    The needed discount is the same under every convention; the granted one is 1, 1.5 and 3. To 2 %:
    noise of 1e-4 in the losses over slopes of 0.05.
    """
    found = judged(arm("dfa", 0.05, 1e25, 1e-4, 1), arm("backprop", 0.07, 1e24, 1e-4))
    assert len(found.comparisons) == 9
    for c in found.comparisons:
        expected = 1e25 * (c.flops / 1e24) ** (0.07 / 0.05) / c.flops
        np.testing.assert_allclose(c.needed.estimate, expected, rtol=0.02)
        assert c.needed.low <= expected * 1.02
        assert c.needed.high >= expected * 0.98
        granted = {"6ND": 1.0, "4ND": 1.5, "2ND": 3.0}[c.convention]
        np.testing.assert_allclose(c.has, granted, rtol=1e-3)
        np.testing.assert_allclose(c.ratio.estimate * c.has, c.needed.estimate, rtol=1e-9)
    for slope in found.slopes.values():
        np.testing.assert_allclose(slope.estimate, 0.02, rtol=0.02)
        assert slope.excludes(0.0)


@pytest.mark.parametrize(
    ("alpha", "C_c", "letter"),
    [
        (0.07, 1e22, "A"),
        (0.08, 1e24 * (1e14 / 1e24) ** (1 - 7 / 8), "B"),
        (0.06, 1e24 * (1e14 / 1e24) ** (1 - 7 / 6), "C"),
        (0.07, 1e26, "D"),
    ],
)
def test_each_outcome_is_called(alpha, C_c, letter):
    """Planted: parallel lines a hundredfold apart, and lines that cross at 1e14 FLOPs, in mid range."""
    found = judged(arm("dfa", alpha, C_c, 1e-4, 1), arm("backprop", 0.07, 1e24, 1e-4))
    assert len(found.outcomes) == 6  # two spans of three conventions
    for outcome in found.outcomes[:2]:  # 6 ND: the planted lines themselves
        assert (outcome.outcome, outcome.estimate) == (letter, letter)
        assert outcome.fractions[letter] >= 0.95
    assert [o.span for o in found.outcomes[:2]] == ["measured", "extrapolated"]
    text = describe(found)
    assert len(text) == 6
    assert f"outcome {letter}" in text[0]


def test_conventions_have_their_own_outcomes():
    """Planted: parallel lines a factor of 2 apart: D at 6 ND and 4 ND, A where the backward is free."""
    found = judged(arm("dfa", 0.07, 2e24, 1e-4, 1), arm("backprop", 0.07, 1e24, 1e-4))
    outcomes = {o.convention: o.outcome for o in found.outcomes if o.span == "measured"}
    assert outcomes == {"6ND": "D", "4ND": "D", "2ND": "A"}
    pays = {c.convention: c.pays for c in found.comparisons if c.flops == 1e15}
    assert pays == {"6ND": 0.0, "4ND": 0.0, "2ND": 1.0}


def test_equal_arms_are_undecided():
    """Planted: two arms of one law, seeds 2 % apart, are told apart under none of 6 ND's spans."""
    found = judged(arm("dfa", 0.07, noise=0.02, seed=1), arm("backprop", 0.07, noise=0.02))
    for outcome in found.outcomes[:2]:
        assert outcome.outcome == "undecided"
        assert max(outcome.fractions.values()) < 0.95
    assert not found.slopes["6ND"].excludes(0.0)


def test_extrapolation_is_marked():
    """Closed form: 1e13 needs 1e14 of the arm, both measured; 1e15 lies inside, 1e18 beyond."""
    found = judged(arm("dfa", 0.07, 1e25, 1e-4, 1), arm("backprop", 0.07, 1e24, 1e-4))
    marks = {c.flops: c.extrapolated for c in found.comparisons if c.convention == "6ND"}
    assert marks == {1e13: False, 1e15: False, 1e18: True}
    measured = found.outcomes[0]
    np.testing.assert_allclose((measured.low, measured.high), (1e12, 1e17), rtol=1e-6)
    np.testing.assert_allclose(found.outcomes[1].high, 1e18)


def test_a_loss_out_of_reach_needs_an_infinite_discount():
    """Closed form: an arm with a floor above the reference's loss never gets there."""
    theta = np.array([[np.log(2.0), 3.0, 0.07]])
    losses = np.array([[2.5, 2.0, 1.5]])
    found = verdict.flops_at(LAWS["power_law_with_floor"], theta, losses)
    np.testing.assert_allclose(found[0, 0], np.exp((3.0 - np.log(0.5)) / 0.07), rtol=1e-12)
    assert np.isinf(found[0, 1:]).all()
    rising = verdict.flops_at(LAWS["power_law"], np.array([[3.0, -0.07]]), losses)
    assert np.isinf(rising).all()


@pytest.mark.slow
def test_intervals_cover_over_seeds():
    """Statistical test: the slopes' difference lies in its 95 % interval in at least 17 of 20 studies.

    Three seeds a size, 1 % apart. Sizes are weighed as well as seeds, so that intervals are wide
    rather than short; intervals of half of the right width hold 13.5 of 20 on average and
    pass with probability 0.07.
    """
    hits = 0
    for seed in range(20):
        ours = arm("dfa", 0.05, noise=0.01, seed=seed)
        theirs = arm("backprop", 0.07, noise=0.01, seed=seed + 100)
        found = judge(
            jax.random.key(seed), {"6ND": ours + theirs}, [1e14], arm="dfa", num_samples=200
        )
        hits += found.slopes["6ND"].low <= 0.02 <= found.slopes["6ND"].high
    assert hits >= 17


def test_a_single_seed_has_intervals_too():
    """Invariant: with one seed a size, the sizes' scatter about the law gives the intervals."""
    found = judged(
        arm("dfa", 0.05, noise=0.02, seed=1, num_seeds=1),
        arm("backprop", 0.07, noise=0.02, num_seeds=1),
    )
    slope = found.slopes["6ND"]
    assert slope.high - slope.low > 1e-3


def test_seeds_keep_the_variance_of_their_mean():
    """Closed form: drawn means have the unbiased variance `s^2 / n`, to 5 % over 40,000 draws."""
    values = np.array([1.0, 2.0, 4.0])
    drawn = verdict._seed_weights(jax.random.key(0), 3, 40_000) @ values
    np.testing.assert_allclose(drawn.var(), values.var(ddof=1) / 3, rtol=0.05)
    np.testing.assert_allclose(drawn.mean(), values.mean(), rtol=0.01)


def test_crossing_twice_is_none_of_the_outcomes():
    """Definition: A to D are never, or once, crossed."""
    rows = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0]], bool)
    assert verdict.letters(rows).tolist() == ["undecided", "undecided", "C"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": "dfq"}, "unknown arm 'dfq'; did you mean 'dfa'"),
        ({"reference": "bp"}, "unknown arm 'bp'"),
        ({"law": "chinchilla"}, "chinchilla is no law of compute"),
    ],
)
def test_bad_options_are_refused(change, message):
    """Documented contract: one line with the value and what is expected."""
    with pytest.raises(InputError, match=message):
        judged(arm("dfa", 0.05), arm("backprop", 0.07), **change)


def test_bad_studies_are_refused():
    """Documented contract: as above."""
    key, theirs, ours = jax.random.key(0), arm("backprop", 0.07), arm("dfa", 0.05)
    with pytest.raises(InputError, match="there are no conventions"):
        judge(key, {}, [1e14], arm="dfa", num_samples=20)
    for budgets in ([], [-1.0]):
        with pytest.raises(InputError, match="expected finite positive FLOPs"):
            judge(key, {"6ND": ours + theirs}, budgets, arm="dfa", num_samples=20)
    one = [run for run in ours if run.size == "size_0" and run.seed == 0]
    with pytest.raises(InputError, match="is a single curve, of size 'size_0'"):
        judge(key, {"6ND": one + theirs}, [1e14], arm="dfa", num_samples=20)
    renamed = [run._replace(size="other_" + run.size) for run in ours]
    with pytest.raises(InputError, match="share no size"):
        judge(key, {"6ND": renamed + theirs}, [1e14], arm="dfa", num_samples=20)
    far = [run._replace(flops=run.flops * 1e9) for run in ours]
    with pytest.raises(InputError, match="expected spans that overlap"):
        judge(key, {"6ND": far + theirs}, [1e14], arm="dfa", num_samples=20)
