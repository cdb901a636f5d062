"""Intervals and paired differences against closed forms."""

import math

import numpy as np
import pytest

from dfa_jax.report import statistics


def test_interval_of_two_is_students_with_one_degree_of_freedom():
    """Oracle: closed form, t_{p,1} = tan(pi (p - 1/2)), and s / sqrt(2) = |a - b| / 2."""
    found = statistics.summarise([1.0, 4.0])
    assert found.mean == pytest.approx(2.5)
    assert found.half_width == pytest.approx(math.tan(math.pi * 0.475) * 1.5)
    assert found.num_seeds == 2


def test_interval_of_three_is_students_with_two_degrees_of_freedom():
    """Oracle: closed form, t_{p,2} = (2p - 1) sqrt(2 / (4 p (1 - p)))."""
    values = [1.0, 2.0, 6.0]
    quantile = 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))
    variance = sum((v - 3) ** 2 for v in values) / 2
    assert statistics.summarise(values).half_width == pytest.approx(
        quantile * math.sqrt(variance / 3)
    )


def test_interval_covers_the_mean_in_nineteen_of_twenty():
    """Oracle: statistical; 1000 intervals of five normal values cover 0 in 95 % +- 4 sigma."""
    samples = np.random.RandomState(0).normal(size=(1000, 5))
    intervals = [statistics.summarise(list(sample)).interval for sample in samples]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000)


def test_one_seed_has_no_interval():
    """Oracle: invariant; a spread needs two values."""
    assert statistics.summarise([3.0]) == (3.0, None, 1)
    assert statistics.summarise([3.0]).interval == (3.0, 3.0)


def test_no_values_are_refused():
    """Oracle: invariant; there is no mean of nothing."""
    with pytest.raises(ValueError, match="no values"):
        statistics.summarise([])


@pytest.mark.parametrize("count", [2, 3])
def test_paired_p_value(count):
    """Oracle: closed form; p is 1 - 2 atan(|t|) / pi for two, 1 - |t| / sqrt(2 + t^2) for three."""
    ours = {0: 1.0, 1: 2.5, 2: 4.0}
    theirs = {0: 0.5, 1: 1.2, 2: 1.9}
    ours = {seed: ours[seed] for seed in range(count)}
    differences = [ours[seed] - theirs[seed] for seed in range(count)]
    mean = sum(differences) / count
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / (count - 1))
    t = mean / (deviation / math.sqrt(count))
    expected = {2: 1 - 2 / math.pi * math.atan(t), 3: 1 - t / math.sqrt(2 + t * t)}[count]
    found = statistics.paired_difference(ours, theirs)
    assert found is not None
    assert found.mean == pytest.approx(mean)
    assert found.p_value == pytest.approx(expected)
    assert found.num_seeds == count


def test_pairs_are_by_seed_and_only_shared_seeds_count():
    """Oracle: exact equivalence with the two shared seeds alone, in either order."""
    ours, theirs = {3: 5.0, 1: 2.0, 7: 100.0}, {1: 1.0, 3: 2.0, 9: -100.0}
    expected = statistics.paired_difference({1: 2.0, 3: 5.0}, {1: 1.0, 3: 2.0})
    assert statistics.paired_difference(ours, theirs) == expected


def test_no_shared_seed_is_no_difference():
    """Oracle: invariant."""
    assert statistics.paired_difference({0: 1.0}, {1: 1.0}) is None


def test_equal_differences_have_no_p_value():
    """Oracle: invariant; the t statistic divides by a spread of zero there."""
    found = statistics.paired_difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0})
    assert found == (1.0, 0.0, None, 2)
