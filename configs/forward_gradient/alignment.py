r"""How well does a forward gradient align with the true one? By width, draws and local losses.

Paper: Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses, arXiv
    2210.03310; the projection: Flügel et al. (2024), arXiv 2410.17764
Command: python scripts/reproduce.py forward_gradient/alignment
Time: 6 min on 2 cores
Expect: a perceptron's alignment falls with the root of the number of weights, or of units, that
    share a slope; K draws raise it by the root of K. Signs are as good as Gaussian noise, but for
    one part in n; a projection on the span of the draws is better than their mean once K is of the
    order of n. Each replication of local losses aligns the guess better.

Alignment is `E<e, g> / (|g| sqrt(E|e|^2))` of estimates `e` and the gradient `g` below the readout:
the cosine, but for the average, which has a closed form so. With n directions `u`, slopes
`s = <g, u>` and the mean of K draws `s u`, `E e = g`, and with the fourth moments of `u`

    E|e|^2 = |g|^2 (K + n + 1) / K  (Gaussian),  |g|^2 (K + n - 1) / K  (signs),

so sqrt(K / (K + n + 1)). A projection on K random directions has `<e, g> = |e|^2`, of mean
`|g|^2 K / n` by symmetry: sqrt(K / n). With weights perturbed these are the predictions. With
activities perturbed each example guesses its own errors, and the noise in them averages out over
examples: see `activity_noise`. Local losses have no closed form here; of their arms K = 1 predicts
the rest, since the noise falls as 1 / K.

Embedded digits; perceptrons with two hidden layers of tanh units, and a LocalMixer with two
blocks and 16 patches, both as drawn. The gradient is that of the losses which an arm descends.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfa_jax import tree
from dfa_jax.autodiff import sites
from dfa_jax.data import ImageData
from dfa_jax.losses import softmax_cross_entropy
from dfa_jax.models import MLP, LocalMixer, from_linen
from dfa_jax.models.base import Model
from dfa_jax.report import ensembles, finding, panel
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Axes, Figure
from dfa_jax.report.series import from_summaries
from dfa_jax.report.statistics import summarise
from dfa_jax.report.study import Arrays, Results, Study
from dfa_jax.report.style import Theme
from dfa_jax.rules import (
    ActivityForwardGradient,
    Backprop,
    LearningRule,
    LocalLosses,
    WeightForwardGradient,
    functional,
)
from dfa_jax.types import Batch


def points(
    base: int, draws: tuple[int, ...], widths: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Width and draws of each measurement: one is swept, then the other."""
    return tuple((base, number) for number in draws) + tuple((width, 1) for width in widths)


@dataclasses.dataclass(frozen=True)
class Perceptron:
    """Alignment with backpropagation, measured and predicted, `[point, seed]`."""

    rule: WeightForwardGradient | ActivityForwardGradient
    points: tuple[tuple[int, int], ...] = points(64, (1, 4, 16, 64), (16, 256))
    num_seeds: int = 6
    num_draws: int = 512
    num_examples: int = 32

    def run(self) -> Mapping[str, np.ndarray]:
        found = [self.measure(*point) for point in self.points]
        width, draws = np.array(self.points).T
        measured, predicted = np.moveaxis(np.array(found), -1, 0)
        return {"width": width, "draws": draws, "measured": measured, "predicted": predicted}

    def measure(self, width: int, draws: int) -> list[tuple[float, float]]:
        """At one point, by seed."""
        images = digits(0, self.num_examples).inputs
        model = from_linen(MLP((width, width)), "layer_*", images)
        rule = dataclasses.replace(self.rule, num_draws=draws)
        repeats = max(1, self.num_draws // draws)
        moments = jax.jit(moments_of(model, rule, Backprop(), repeats))
        predict = jax.jit(lambda params, batch: predicted(model, rule, params, batch))
        start = jax.jit(model.init)
        found = []
        for seed in range(self.num_seeds):
            batch = digits(seed, self.num_examples)
            params = start(jax.random.key(seed), batch.inputs)
            measured = alignment(*moments(jax.random.key(seed), params, batch))
            found.append((measured, float(predict(params, batch))))
        return found

    def shrunk(self) -> "Perceptron":
        points = ((4, 2),)
        return dataclasses.replace(self, points=points, num_seeds=2, num_draws=8, num_examples=4)


@dataclasses.dataclass(frozen=True)
class Mixer:
    """Alignment with the true gradient of the rule's losses, `[point, seed]`.

    The estimates are unbiased, so it is `|g| / sqrt(E|e|^2)`. To measure `E<e, g>` instead takes
    far more draws: where examples cancel in `g`, it is small beside its noise.
    """

    rule: LearningRule
    points: tuple[tuple[int, int], ...] = points(32, (1, 4, 16), (16, 64))
    num_groups: int = 8
    num_blocks: int = 2
    num_seeds: int = 6
    num_draws: int = 64
    num_examples: int = 16

    def run(self) -> Mapping[str, np.ndarray]:
        found = [self.measure(*point) for point in self.points]
        width, draws = np.array(self.points).T
        return {"width": width, "draws": draws, "measured": np.array(found)}

    def measure(self, channels: int, draws: int) -> list[float]:
        """At one point, by seed."""
        images = digits(0, self.num_examples).inputs
        module = LocalMixer(
            num_blocks=self.num_blocks,
            patches_per_side=4,
            channels=channels,
            num_groups=self.num_groups,
            zero_readout=False,
        )
        model = from_linen(module, "block_*/*_mixing", images, blocks="block_*")
        rule, truth = with_draws(self.rule, draws), exact(self.rule)
        moments = jax.jit(moments_of(model, rule, truth, max(1, self.num_draws // draws)))
        start = jax.jit(lambda k, b: rule.init(k, model, model.init(k, b.inputs), b)[0])
        found = []
        for seed in range(self.num_seeds):
            batch = digits(seed, self.num_examples)
            key = jax.random.key(seed)
            _, square, true_square = moments(key, start(key, batch), batch)
            found.append(alignment(true_square, square, true_square))
        return found

    def shrunk(self) -> "Mixer":
        rule = self.rule
        if isinstance(rule, LocalLosses) and rule.num_groups > 1:
            rule = dataclasses.replace(rule, num_groups=2)
        return dataclasses.replace(
            self,
            rule=rule,
            points=((8, 1), (8, 2)),
            num_groups=2,
            num_seeds=2,
            num_draws=2,
            num_examples=4,
        )


@functools.cache
def train_set() -> Batch:
    """All embedded images for training."""
    train = ImageData("digits").load().train
    assert isinstance(train, Batch)  # they are embedded, not streamed
    return train


def digits(seed: int, number: int) -> Batch:
    """Some embedded images."""
    train = train_set()
    chosen = np.random.default_rng(seed).choice(len(train.targets), number, replace=False)
    return Batch(jnp.asarray(train.inputs[chosen]), jnp.asarray(train.targets[chosen]))


def with_draws(rule: Any, draws: int) -> LearningRule:
    """The rule with another number of directions."""
    if isinstance(rule, LocalLosses):
        return dataclasses.replace(rule, estimator=with_draws(rule.estimator, draws))
    return dataclasses.replace(rule, num_draws=draws)


def exact(rule: LearningRule) -> LearningRule:
    """What the rule estimates."""
    if isinstance(rule, LocalLosses):
        return dataclasses.replace(rule, estimator=Backprop())
    return Backprop()


def moments_of(
    model: Model, rule: LearningRule, truth: LearningRule, repeats: int
) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """A function that gives `E<e, g>`, `E|e|^2` and `|g|^2`, of all weights below the readout."""

    def gradient(rule, key, params, batch):
        loss_fn = softmax_cross_entropy
        grads = functional.estimate(rule, model, loss_fn, params, (), (), batch, key).grads
        return trunk(grads)

    def moments(key, params, batch):
        g = gradient(truth, key, params, batch)

        def one(key):
            e = gradient(rule, key, params, batch)
            return inner(e, g), inner(e, e)

        keys = jax.random.split(jax.random.fold_in(key, 1), repeats)
        products, squares = jax.lax.map(one, keys)
        return products.mean(), squares.mean(), inner(g, g)

    return moments


def alignment(product: jax.Array, square: jax.Array, true_square: jax.Array) -> float:
    """`E<e, g> / (|g| sqrt(E|e|^2))`."""
    return float(product / jnp.sqrt(square * true_square))


def trunk(grads: Mapping[str, Any]) -> dict[str, Any]:
    """What is guessed: all but the readout's and the local heads', which are exact."""
    return {name: part for name, part in grads.items() if name.startswith(("layer_", "block_"))}


def inner(left: Any, right: Any) -> jax.Array:
    """Of two trees as vectors."""
    products = jax.tree.map(lambda a, b: (a * b).sum(), left, right)
    return jnp.stack(jax.tree.leaves(products)).sum()


def predicted(model: Model, rule: Any, params: Any, batch: Batch) -> jax.Array:
    """The alignment of a rule with backpropagation, in closed form."""
    g = trunk(
        functional.estimate(
            Backprop(), model, softmax_cross_entropy, params, (), (), batch, jax.random.key(0)
        ).grads
    )
    K = rule.num_draws
    if isinstance(rule, WeightForwardGradient):
        n = tree.size(g)
        if rule.combination == "projection":
            return jnp.sqrt(K / n)
        return jnp.sqrt(K / (K + n + (1 if rule.noise == "gaussian" else -1)))
    scale, noise = activity_noise(model, rule, params, batch)
    square = inner(g, g)
    return scale * jnp.sqrt(square / (scale**2 * square + noise))


def activity_noise(
    model: Model, rule: ActivityForwardGradient, params: Any, batch: Batch
) -> tuple[float, jax.Array]:
    r"""How much of the gradient is left on average, and the variance of all weights' estimates.

    The errors `d_i` of example i, n units, are estimated by `e_i` of mean `c d_i`, and

        Var e_ij = A |d_i|^2 + B d_ij^2,    Var of a weight = sum_i (x_i phi'_ij / N)^2 Var e_ij,

    as examples are independent. The mean of K draws has c = 1, A = 1/K and B = 1/K, or -1/K with
    signs. A projection P on K random directions has c = K/n; by symmetry `E[P d d^T P]` is
    `a |d|^2 + b d d^T`, where the trace is n a + b = K/n and, since `d^T P d` of a unit vector is
    distributed as Beta(K/2, (n-K)/2), a + b = K (K + 2) / (n (n + 2)).
    """
    N = len(batch.targets)
    errors = functional.estimate(
        Backprop(), model, softmax_cross_entropy, params, (), (), batch, jax.random.key(0)
    ).errors
    _, activities = sites.activities(model, params, batch.inputs)
    n, K = sum(d.shape[-1] for d in errors.values()), rule.num_draws
    if rule.combination == "projection":
        a = K * (n - K) / (n * (n + 2) * (n - 1))
        scale, A, B = K / n, a, K * (K + 2) / (n * (n + 2)) - a - (K / n) ** 2
    else:
        scale, A, B = 1.0, 1 / K, (1 if rule.noise == "gaussian" else -1) / K
    whole = jnp.stack([jnp.square(d).sum(-1) for d in errors.values()]).sum(0)  # |d_i|^2 / N^2
    x = batch.inputs.reshape(N, -1)
    noise = jnp.zeros(())
    for site in model.sites:
        h = activities[site]
        variance = A * whole[:, None] + B * jnp.square(errors[site])
        lengths = jnp.square(x).sum(-1) + 1  # with the bias's 1
        noise += (lengths[:, None] * jnp.square(1 - jnp.square(h)) * variance).sum()
        x = h
    return scale, noise


NAMES = {
    "Gaussian": {"noise": "gaussian"},
    "signs": {"noise": "rademacher"},
    "projection": {"combination": "projection"},
}
KINDS = {"weights": WeightForwardGradient, "activities": ActivityForwardGradient}
PERCEPTRONS = {
    f"{kind}, {name}": Perceptron(rule(**options))
    for kind, rule in KINDS.items()
    for name, options in NAMES.items()
}
GUESS = ActivityForwardGradient(noise="rademacher", relu_mask=True)
MIXERS = {
    "one loss": Mixer(GUESS),
    "a loss a block": Mixer(LocalLosses(GUESS)),
    "a loss a patch": Mixer(LocalLosses(GUESS, patchwise=True)),
    "a loss a patch and group": Mixer(LocalLosses(GUESS, patchwise=True, num_groups=8)),
}


def draw(results: Results, theme: Theme) -> Figure:
    """Alignment against draws above, against width below: weights, activities, local losses."""
    figure, axes = panel.panels(2, 3)
    for row, along in enumerate(("draws", "width")):
        for column, kind in enumerate(KINDS):
            cases = {name: results.get(f"{kind}, {name}") for name in NAMES}
            curves(axes[row, column], cases, along, theme)
            axes[row, column].set_title(f"Perceptron, {kind} perturbed")
        curves(axes[row, 2], {label: results.get(label) for label in MIXERS}, along, theme)
        axes[row, 2].set_title("LocalMixer, activities perturbed")
        axes[row, 2].set_xlabel("draws" if along == "draws" else "channels")
    return figure


def curves(axis: Axes, cases: Mapping[str, Arrays | None], along: str, theme: Theme) -> None:
    """Points with intervals; a line where there is a prediction, else between the points."""
    from matplotlib.ticker import FixedLocator, NullLocator

    known = {label: found for label, found in cases.items() if found is not None}
    ticks = set()
    for place, (label, found) in enumerate(known.items()):
        rows = np.flatnonzero(swept(found, along))
        rows = rows[np.argsort(found[along][rows])]
        x, colour = found[along][rows], ensembles.layer_colour(place, theme)
        means = [summarise([float(v) for v in values]) for values in found["measured"][rows]]
        ticks |= set(x)
        if "predicted" in found:
            axis.plot(x, found["predicted"][rows].mean(1), color=colour, linewidth=0.8)
            axis.errorbar(
                x * 1.07 ** (place - 1),  # beside each other: many coincide
                [found.mean for found in means],
                [found.half_width or 0.0 for found in means],
                color=colour,
                marker="os^"[place],
                linestyle="",
                label=label,
            )
        else:
            points = from_summaries(zip(x, means, strict=True))
            panel.band(axis, points, colour, label=label, marker="o")
    axis.set(xscale="log", yscale="log", xlabel="draws" if along == "draws" else "units a layer")
    axis.set_ylabel("alignment")
    axis.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
    axis.xaxis.set_minor_locator(NullLocator())
    for which in (axis.xaxis.set_major_formatter, axis.yaxis.set_major_formatter):
        which(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(in_words)
    if known:
        low, high = axis.get_ylim()
        axis.set_ylim(low / 2 if along == "width" else low, high)  # room for the legend
        axis.legend(loc="lower right" if along == "draws" else "lower left", fontsize=8)


def in_words(value: float, _: float) -> str:
    """Labels at 2 and 5 times a power of ten."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def swept(found: Arrays, along: str) -> np.ndarray:
    """The points at which the other quantity has its value of the first point."""
    other = "width" if along == "draws" else "draws"
    return found[other] == found[other][0]


def findings(results: Results) -> Sequence[Finding]:
    """The point of every estimator that is furthest from its prediction; local losses."""
    found = []
    for label in PERCEPTRONS:
        ratios = results[label]["measured"] / results[label]["predicted"]
        found.append(furthest(f"perceptron, {label}", results[label], ratios))
    for label in MIXERS:
        # Noise over signal falls as 1 / K from its value at K = 1, 1 / r^2 - 1.
        measured, draws = results[label]["measured"], results[label]["draws"]
        single = 1 / np.square(measured[0]) - 1
        predictions = np.sqrt(draws[:, None] / (draws[:, None] + single))
        more = swept(results[label], "draws") & (draws > 1)
        found.append(
            furthest(
                f"LocalMixer, {label}", results[label], measured / predictions, more, "from K = 1"
            )
        )
    noise = {
        label: 1 / np.square(results[label]["measured"][0]) - 1 for label in MIXERS
    }  # over signal, [seed]
    for fewer, more in zip(list(MIXERS)[:-1], list(MIXERS)[1:], strict=True):
        found.append(
            finding.at_least(
                f"LocalMixer, one draw: noise over signal, {fewer}, over that with {more}",
                noise[fewer] / noise[more],
                1.0,
                "fewer units share a slope",
                digits=2,
            )
        )
    return found


def furthest(
    claim: str,
    found: Arrays,
    ratios: np.ndarray,
    among: np.ndarray | None = None,
    source: str = "closed form",
) -> Finding:
    """The row of `ratios`, `[point, seed]`, whose mean is furthest from 1."""
    distance = np.abs(ratios.mean(1) - 1)
    worst = int(np.argmax(distance if among is None else np.where(among, distance, -1)))
    at = f"width {found['width'][worst]:g}, draws {found['draws'][worst]:g}"
    # One point of several was picked: its interval alone would be too narrow.
    return finding.near(
        f"{claim}: measured over predicted alignment, furthest point ({at})",
        ratios[worst],
        1.0,
        0.02,
        source,
    )


RECIPE = Study(
    title="Alignment of forward gradients with the true one",
    paper="Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses,"
    " arXiv 2210.03310",
    minutes=6,
    cases=PERCEPTRONS | MIXERS,
    draw=draw,
    findings=findings,
)
