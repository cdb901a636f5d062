"""Envelopes and IsoFLOP minima against closed forms of planted laws."""

import math

import numpy as np
import pytest

from dfa_jax.errors import InputError
from dfa_jax.scaling import Run, isoflop_minima, lower_envelope
from tests.scaling import planted

LAW = {"E": 1.0, "A": 20.0, "B": 60.0, "alpha": 0.25, "beta": 0.25}


def noiseless(**options):
    return planted.curves(np.random.default_rng(0), "backprop", LAW, **options)


def test_envelope_is_the_least_of_the_law():
    """Closed form: at every budget the least loss of the planted law over the ladder's sizes.

    To 1e-3, the error of interpolation between points a factor of 2.2 apart.
    """
    sizes = np.geomspace(1e5, 1e7, 6).round()
    budgets = np.geomspace(1e13, 1e16, 20)
    for point in lower_envelope(noiseless(num_seeds=2), budgets):
        D = point.flops / (6 * sizes)
        inside = (D >= 1e6) & (D <= 1e9)
        losses = np.where(inside, planted.chinchilla_loss(sizes, D, **LAW), np.inf)
        np.testing.assert_allclose(point.loss, losses.min(), rtol=1e-3)
        assert point.num_params == sizes[losses.argmin()]
        np.testing.assert_allclose(point.num_tokens, D[losses.argmin()], rtol=1e-3)


def test_points_of_curves_are_met_exactly():
    """Exact equivalence: at a budget where the only curve has a point, that point."""
    runs = noiseless(num_sizes=1, num_seeds=1)
    found = lower_envelope(runs, [run.flops for run in runs])
    np.testing.assert_allclose([p.loss for p in found], [r.loss for r in runs], rtol=1e-12)
    assert [p.num_tokens for p in found] == [r.num_tokens for r in runs]


def test_nothing_is_extrapolated():
    """Invariant: budgets in a gap between two curves have no point; those beyond are refused."""
    curve = [Run("bp", "a", 10, 10, float(C), 3.0, 0) for C in (1, 2, 4)]
    later = [Run("bp", "b", 20, 10, float(C), 2.0, 0) for C in (100, 200)]
    found = lower_envelope(curve + later, [1, 4, 5, 50, 100, 200])
    assert [point.flops for point in found] == [1, 4, 100, 200]
    with pytest.raises(InputError, match="budget 0.5 FLOPs is outside of the runs, 1 to 200"):
        lower_envelope(curve + later, [0.5])


def test_a_lucky_seed_does_not_win():
    """Closed form: means over seeds, of log-losses, are compared; a size counts where all seeds do."""
    spread = [
        Run("bp", "lucky", 10, 10 * C, float(C), loss, seed)
        for seed, loss in enumerate((1.0, 4.0))
        for C in (1, 2, 4)
    ]
    steady = [Run("bp", "steady", 20, 10 * C, float(C), 1.5, 0) for C in (1, 2, 4)]
    assert {p.size for p in lower_envelope(spread + steady)} == {"steady"}
    np.testing.assert_allclose([p.loss for p in lower_envelope(spread)], 2.0)
    short = [run for run in spread if not (run.seed == 1 and run.flops == 4)]
    assert max(p.flops for p in lower_envelope(short, [1, 2, 3, 4])) == 2


def test_interior_leaves_out_the_ends_of_the_ladder():
    """Invariant: neither the smallest nor the largest size wins at what is left."""
    whole, inner = lower_envelope(noiseless()), lower_envelope(noiseless(), interior=True)
    assert {p.size for p in whole} - {p.size for p in inner} == {"size_0", "size_5"}
    assert set(inner) <= set(whole)
    with pytest.raises(InputError, match="smallest or the largest of 2 sizes wins"):
        lower_envelope(noiseless(num_sizes=2), interior=True)


def test_isoflop_minima_are_compute_optimal():
    """Closed form: the law's best size, N = (C / 6)^(1/2) (A / B)^2 for alpha = beta = 1/4.

    Sizes are a factor of 1.6 apart: parabolas are right to 5 % in N, and 1e-3 in loss.
    """
    runs = noiseless(num_sizes=11)
    for found in isoflop_minima(runs, np.geomspace(5e13, 2e15, 6)):
        N = math.sqrt(found.flops / 6) * (20 / 60) ** 2
        assert found.rejected == ""
        np.testing.assert_allclose(found.num_params, N, rtol=0.05)
        np.testing.assert_allclose(found.num_tokens, found.flops / 6 / N, rtol=0.06)
        best = planted.chinchilla_loss(N, found.flops / 6 / N, **LAW)
        np.testing.assert_allclose(found.loss, best, rtol=1e-3)


def test_edges_are_rejected_and_say_so():
    """Documented contract: a budget whose best size is at an edge has no minimum, and a reason."""
    runs = noiseless(num_sizes=11)
    reasons = {m.rejected for m in isoflop_minima(runs, [1e12, 5e12, 1e15])}
    assert reasons == {"under three sizes", "the smallest size wins", ""}
    small = [run for run in runs if run.num_params < 4e5]
    largest = isoflop_minima(small, [3e14])[0]
    assert largest.rejected == "the largest size wins"
    assert math.isnan(largest.num_params)
    assert math.isnan(largest.loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_params": 11}, r"size 'a' has \[10, 11\] parameters"),
        ({"num_tokens": 30}, "size 'a', seed 0 has two points at 1 FLOPs"),
    ],
)
def test_curves_that_contradict_themselves_are_refused(change, message):
    """Documented contract: one size, one N; one curve, one point a budget."""
    run = Run("bp", "a", 10, 20, 1.0, 3.0, 0)
    with pytest.raises(InputError, match=message):
        lower_envelope([run, run._replace(**change)])
