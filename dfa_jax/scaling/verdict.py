r"""Does an arm pay? Its compute against a reference's at equal loss, convention by convention.

The frontier `L(C)` of either arm is a law fitted to the lower envelope of its curves. At a budget C
of the reference, the *ratio* is

    C_arm(L) / C_ref(L)   at   L = L_ref(C),

below 1 where the arm needs less. A convention of counting FLOPs (measured; 6ND for all; 4ND or 2ND
where the arm is spared part of the backward pass) may already grant the arm a discount: the one it
*has* is what the reference would be charged for the same size and tokens over what the arm is. The
discount that it would *need*, to draw level, is the ratio times that, and does not depend on what a
convention grants.

The outcomes are those of figure 1 of Filipovich et al. (2022), arXiv 2210.14593:

* A: the arm is better everywhere; B: it becomes better at scale;
* C: the reference becomes better at scale, the arm may pay while small; D: the reference is better
  everywhere.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from dfa_jax.errors import InputError
from dfa_jax.scaling import fit as fits
from dfa_jax.scaling import frontier, laws
from dfa_jax.scaling import runs as points
from dfa_jax.scaling.fit import CONFIDENCE, Fit, Interval, interval
from dfa_jax.scaling.laws import Law
from dfa_jax.scaling.runs import Run
from dfa_jax.types import PRNGKey

NUM_CHECKS = 25
"""Budgets, log-spaced over a span, at which the arms are compared for an outcome."""

Letter = Literal["A", "B", "C", "D", "undecided"]


class Comparison(NamedTuple):
    """The arm against the reference at one budget, under one convention.

    Attributes:
        convention: of counting FLOPs.
        flops: C, what the reference spends.
        ratio: FLOPs of the arm over those of the reference at equal loss; infinite if the arm never
            gets there.
        needed: the discount that would make them equal.
        has: the discount that the convention grants; `ratio` includes it.
        pays: fraction of bootstrap samples in which the arm has the lower loss at C.
        extrapolated: whether C is outside of the reference's curves, or the FLOPs of the arm
            outside of the arm's.
    """

    convention: str
    flops: float
    ratio: Interval
    needed: Interval
    has: float
    pays: float
    extrapolated: bool


class Outcome(NamedTuple):
    """Which of the paper's four outcomes a span of budgets shows, under one convention.

    Attributes:
        convention: of counting FLOPs.
        span: `measured`: the budgets that curves of both arms reach; `extrapolated`: these and
            those asked for beyond.
        low: least budget of the span, FLOPs.
        high: greatest.
        outcome: the letter that at least 95 % of bootstrap samples show, else `undecided`.
        estimate: the letter that the fits themselves show; `undecided` if they cross twice.
        fractions: of bootstrap samples, by letter; samples that cross twice are in none.
    """

    convention: str
    span: Literal["measured", "extrapolated"]
    low: float
    high: float
    outcome: Letter
    estimate: Letter
    fractions: dict[str, float]


class Verdict(NamedTuple):
    """All that a comparison of two arms says.

    Attributes:
        arm: that was judged.
        reference: that it was judged against.
        comparisons: every convention at every budget.
        outcomes: one or two spans for every convention.
        slopes: alpha of the reference minus alpha of the arm, by convention: positive where the
            reference gains more from compute.
    """

    arm: str
    reference: str
    comparisons: tuple[Comparison, ...]
    outcomes: tuple[Outcome, ...]
    slopes: dict[str, Interval]


class Frontier(NamedTuple):
    """The law of one arm's envelope, with bootstrap samples in `fit.samples`."""

    fit: Fit
    envelope: list[Run]
    low: float
    high: float


def judge(
    key: PRNGKey,
    conventions: Mapping[str, Sequence[Run]],
    budgets: Sequence[float],
    *,
    arm: str,
    reference: str = "backprop",
    law: Law | str = "power_law",
    interior: bool = False,
    num_samples: int = 1000,
) -> Verdict:
    """Judges an arm against a reference at every budget, under every convention.

    Args:
        key: for the bootstrap; conventions share its draws.
        conventions: the same curves with FLOPs counted in different ways, by the convention's name.
        budgets: FLOPs of the reference; they may lie beyond the curves, and are marked then.
        arm: to be judged.
        reference: to judge it against.
        law: of compute: `power_law` or `power_law_with_floor`.
        interior: fit where neither the smallest nor the largest size wins, see `lower_envelope`.
        num_samples: of the bootstrap, see `fit_frontier`. The arms are drawn independently.

    Raises:
        InputError: no convention, no budget or one that is not positive; an arm without runs; a
            law of sizes; arms that share no size or no budget; a frontier of a single curve.
    """
    law = laws.get(law)
    if law.features != ("flops",):
        raise InputError(f"{law.name} is no law of compute; expected power_law[_with_floor]")
    if not conventions:
        raise InputError("there are no conventions; expected runs by the convention's name")
    grid = np.asarray(budgets, float)
    if not grid.size or not (np.isfinite(grid) & (grid > 0)).all():
        raise InputError(f"budgets are {list(budgets)}; expected finite positive FLOPs")
    comparisons, outcomes, slopes = [], [], {}
    for convention, runs in conventions.items():
        points.check(runs)
        ours, theirs = (
            fit_frontier(
                jax.random.fold_in(key, i),
                law,
                points.of_arm(runs, name),
                interior=interior,
                num_samples=num_samples,
            )
            for i, name in enumerate((arm, reference))
        )
        comparisons += _compare(convention, ours, theirs, grid, discounts(runs, arm, reference))
        outcomes += _outcomes(convention, ours, theirs, grid)
        slopes[convention] = slope_difference(ours.fit, theirs.fit)
    return Verdict(arm, reference, tuple(comparisons), tuple(outcomes), slopes)


def fit_frontier(
    key: PRNGKey, law: Law, runs: Sequence[Run], *, interior: bool, num_samples: int
) -> Frontier:
    """A law fitted to the lower envelope of one arm, and to envelopes of resampled curves.

    What varies: within a size, seeds: n - 1 of the n are drawn with replacement (Rao and Wu, 1988:
    a mean over so few keeps its variance), and the envelope is taken anew; and the sizes' weights
    in the fit, `Exp(1)` each, since the ladder's sizes scatter about any law. No size is left out:
    an envelope of fewer sizes is higher for that alone.

    Raises:
        InputError: the envelope is all of one size with one seed.
    """
    envelope = frontier.lower_envelope(runs, interior=interior)
    fit = fits.fit_law(law, envelope)
    sizes = frontier.interpolate(runs, np.array([point.flops for point in envelope]))
    winners = {point.size for point in envelope}
    if len(winners) == 1 and all(len(s.log_losses) == 1 for s in sizes if s.size in winners):
        raise InputError(
            f"the frontier of arm '{runs[0].arm}' is a single curve, of size '{winners.pop()}';"
            " expected several seeds, or sizes that take turns"
        )
    with jax.enable_x64(True):
        seed_key, size_key = jax.random.split(key)
        keys = jax.random.split(seed_key, len(sizes))
        losses = [
            _seed_weights(k, len(s.log_losses), num_samples) @ s.log_losses
            for k, s in zip(keys, sizes, strict=True)
        ]
        weights = np.asarray(jax.random.exponential(size_key, (num_samples, len(sizes))))
    lowest = np.nanmin(np.stack(losses), axis=0)  # [samples, points]
    number = {s.size: i for i, s in enumerate(sizes)}
    of_point = weights[:, [number[point.size] for point in envelope]]
    samples = fits.refit(fit, of_point, lowest)
    fit = fits.with_samples(fit, samples)
    return Frontier(fit, envelope, envelope[0].flops, envelope[-1].flops)


def discounts(runs: Sequence[Run], arm: str, reference: str) -> dict[int, float]:
    """FLOPs a token of the reference over those of the arm, by parameters of each shared size.

    Raises:
        InputError: the arms share no size.
    """

    def by_size(name: str) -> dict[str, float]:
        ours = points.of_arm(runs, name)
        return {
            size: float(np.median([r.flops / r.num_tokens for r in ours if r.size == size]))
            for size in dict.fromkeys(run.size for run in ours)
        }

    ours, theirs = by_size(arm), by_size(reference)
    num_params = {run.size: run.num_params for run in runs if run.arm == arm}
    found = {num_params[size]: theirs[size] / ours[size] for size in ours if size in theirs}
    if not found:
        raise InputError(
            f"arms '{arm}' and '{reference}' share no size ({', '.join(ours)} and"
            f" {', '.join(theirs)}), so that a discount cannot be read off; train one size by both"
        )
    return dict(sorted(found.items()))


def flops_at(
    law: Law,
    thetas: Float[np.ndarray, "samples params"],
    losses: Float[np.ndarray, "samples budgets"],
) -> Float[np.ndarray, "samples budgets"]:
    """`C(L)`: the inverse of a law of compute; infinite where the loss is never reached."""
    c, alpha = thetas[:, -2:, None].transpose(1, 0, 2)
    floor = np.exp(thetas[:, :1]) if law.coordinates[0] == "e" else 0.0
    above = losses - floor
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        flops = np.exp((c - np.log(above)) / alpha)
    return np.where((above > 0) & (alpha > 0), flops, np.inf)


def slope_difference(ours: Fit, theirs: Fit) -> Interval:
    """alpha of the reference minus alpha of the arm."""
    assert ours.samples is not None
    assert theirs.samples is not None
    return interval(theirs.theta[-1] - ours.theta[-1], theirs.samples[:, -1] - ours.samples[:, -1])


def describe(verdict: Verdict) -> list[str]:
    """The verdict in sentences: a convention and a span each."""
    return [
        f"{o.convention}, {o.low:.3g} to {o.high:.3g} FLOPs ({o.span}): outcome {o.outcome}"
        f" (fits: {o.estimate}; samples: "
        + ", ".join(f"{letter} {100 * share:.0f} %" for letter, share in o.fractions.items())
        + f"); {_needs(verdict, o)}"
        for o in verdict.outcomes
    ]


def _needs(verdict: Verdict, outcome: Outcome) -> str:
    """The discounts at the budgets of a span."""
    inside = [
        c
        for c in verdict.comparisons
        if c.convention == outcome.convention and outcome.low <= c.flops <= outcome.high
    ]
    told = "; ".join(
        f"at {c.flops:.3g} FLOPs it needs {c.needed.estimate:.3g}"
        f" [{c.needed.low:.3g}, {c.needed.high:.3g}], has {c.has:.3g}"
        + (" (extrapolated)" if c.extrapolated else "")
        for c in inside
    )
    return f"{verdict.arm} against {verdict.reference}: {told or 'no budget asked for inside'}"


def _seed_weights(key: Any, num_seeds: int, num_samples: int) -> np.ndarray:
    """`[samples, seeds]`, rows that sum to one: the mean over n - 1 drawn of n seeds."""
    if num_seeds == 1:
        return np.ones((num_samples, 1))
    drawn = np.asarray(jax.random.randint(key, (num_samples, num_seeds - 1), 0, num_seeds))
    return (drawn[:, :, None] == np.arange(num_seeds)).mean(1)


def _thetas(fit: Fit) -> Float[np.ndarray, "samples params"]:
    """The estimate in the first row, then the samples."""
    assert fit.samples is not None
    return np.concatenate([fit.theta[None], fit.samples])


def _better(
    ours: Frontier, theirs: Frontier, budgets: np.ndarray
) -> Bool[np.ndarray, "samples budgets"]:
    """Whether the arm's loss is the lower one; the estimate in the first row."""
    law = ours.fit.law
    mine, other = (fits.predict(law, _thetas(f.fit), flops=budgets) for f in (ours, theirs))
    return mine < other


def _compare(
    convention: str,
    ours: Frontier,
    theirs: Frontier,
    budgets: np.ndarray,
    granted: Mapping[int, float],
) -> list[Comparison]:
    law = ours.fit.law
    losses = fits.predict(law, _thetas(theirs.fit), flops=budgets)
    spent = flops_at(law, _thetas(ours.fit), losses)
    ratios = spent / budgets[None]
    pays = _better(ours, theirs, budgets)[1:].mean(0)
    found = []
    for i, flops in enumerate(budgets):
        nearest = np.searchsorted([p.flops for p in ours.envelope[1:]], spent[0, i])
        log_params = np.log(ours.envelope[nearest].num_params)
        has = float(np.interp(log_params, np.log(list(granted)), list(granted.values())))
        measured = theirs.low <= flops <= theirs.high and ours.low <= spent[0, i] <= ours.high
        ratio = interval(ratios[0, i], ratios[1:, i])
        needed = Interval(*(has * end for end in ratio))
        found.append(
            Comparison(convention, float(flops), ratio, needed, has, float(pays[i]), not measured)
        )
    return found


def _outcomes(
    convention: str, ours: Frontier, theirs: Frontier, budgets: np.ndarray
) -> list[Outcome]:
    low, high = max(ours.low, theirs.low), min(ours.high, theirs.high)
    if low >= high:
        raise InputError(
            f"convention '{convention}': the arm's curves span {ours.low:.3g} to {ours.high:.3g}"
            f" FLOPs, the reference's {theirs.low:.3g} to {theirs.high:.3g}; expected spans that"
            " overlap"
        )
    found = [_outcome(convention, "measured", low, high, ours, theirs)]
    least, most = min(low, budgets.min()), max(high, budgets.max())
    if (least, most) != (low, high):
        found.append(_outcome(convention, "extrapolated", least, most, ours, theirs))
    return found


def _outcome(convention, span, low, high, ours: Frontier, theirs: Frontier) -> Outcome:
    shown = letters(_better(ours, theirs, np.geomspace(low, high, NUM_CHECKS)))
    fractions = {letter: float((shown[1:] == letter).mean()) for letter in "ABCD"}
    likeliest = max(fractions, key=lambda letter: fractions[letter])
    settled = fractions[likeliest] >= CONFIDENCE
    return Outcome(
        convention,
        span,
        float(low),
        float(high),
        likeliest if settled else "undecided",  # pyright: ignore[reportArgumentType]
        shown[0].item(),
        fractions,
    )


def letters(better: Bool[np.ndarray, "samples budgets"]) -> np.ndarray:
    """The outcome of each row: where, from the least budget to the greatest, the arm is better.

    >>> letters(np.array([[True, True], [False, True], [True, False], [False, False]])).tolist()
    ['A', 'B', 'C', 'D']
    """
    crossings = (better[:, 1:] != better[:, :-1]).sum(1)
    first, last = better[:, 0], better[:, -1]
    return np.select(
        [crossings > 1, first & last, ~first & last, first & ~last],
        ["undecided", "A", "B", "C"],
        "D",
    )
