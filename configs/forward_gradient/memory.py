"""Figure 5: memory and step time of local losses, fused against naive.

Paper: Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses, arXiv
    2210.03310, figure 5
Command: python scripts/reproduce.py forward_gradient/memory
Time: 9 min on 2 cores
Expect: replicated losses written out hold a copy of a block's features for every group; fused, none
    at all, whatever the number of groups and patches. A step costs as much as backpropagation's.

Each loss of a block sees the same aggregated features and may move its own patch and group alone.
Naive, each is computed for itself; fused, they are one loss with a derivative of its own. Measured
of one gradient at batch 128: temporary memory and FLOPs of the compiled program, and the time, all
arms in turns, as a ratio to backpropagation within the round. Programs that need more than 4 GB are
compiled only. No numbers of the paper's figure are known to us: the bounds here are our own.

Not to be reached is a whole step whose fused form needs 1/20 of the naive one's memory: LG-BP,
which has no replicated loss at all, needs 1/6 of it for the activities that any of these rules
keeps.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dfa_jax.autodiff.replicate import REPLICATED
from dfa_jax.losses import softmax_cross_entropy
from dfa_jax.models import LocalMixer, from_linen
from dfa_jax.report import cost, ensembles, finding, panel
from dfa_jax.report.cost import Program
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Axes, Figure
from dfa_jax.report.study import Results, Study
from dfa_jax.report.style import Theme
from dfa_jax.rules import ActivityForwardGradient, Backprop, LearningRule, LocalLosses, functional
from dfa_jax.types import Batch

IMAGES, CLASSES = (32, 32, 3), 10
ARMS = ("BP", "LG-BP", "LG-FG-A fused", "LG-FG-A naive")
LOSSES = ("fused", "naive")


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Costs of one gradient under every arm of `ARMS`."""

    model: LocalMixer
    rounds: int
    batch_size: int = 128
    bytes_to_run: float = 4e9

    def run(self) -> Mapping[str, np.ndarray]:
        return cost.measure(
            self.programs(), self.rounds, bytes_to_run=self.bytes_to_run, num_labels=CLASSES
        )

    def programs(self) -> dict[str, Program]:
        """A gradient function an arm."""
        inputs = jax.ShapeDtypeStruct((self.batch_size, *IMAGES), jnp.float32)
        batch = Batch(inputs, jax.ShapeDtypeStruct((self.batch_size,), jnp.int32))
        model = from_linen(self.model, "block_*/*_mixing", inputs, blocks="block_*")
        key = jax.random.key(0)
        found = {}
        for name, rule in rules(self.model.num_groups).items():
            params = jax.eval_shape(model.init, key, inputs)
            params, state = jax.eval_shape(
                lambda p, b, rule=rule: rule.init(key, model, p, b), params, batch
            )

            def gradient(params, state, batch, rule=rule):
                loss_fn = softmax_cross_entropy
                found = functional.estimate(
                    rule, model, loss_fn, params, state, (), batch, jax.random.key(1)
                )
                return found.grads

            found[name] = Program(gradient, (params, state, batch))
        return found

    def shrunk(self) -> "Gradients":
        small = self.model.clone(num_blocks=2, patches_per_side=2, channels=16, num_groups=2)
        return dataclasses.replace(self, model=small, rounds=min(self.rounds, 2), batch_size=4)


def rules(num_groups: int) -> dict[str, LearningRule]:
    """The arms; noise is signs, which cost a random bit each."""
    estimator = ActivityForwardGradient(noise="rademacher", relu_mask=True)
    local = functools.partial(LocalLosses, estimator, patchwise=True, num_groups=num_groups)
    arms = (Backprop(), LocalLosses(), local(), local(aggregator="naive"))
    return dict(zip(ARMS, arms, strict=True))


@dataclasses.dataclass(frozen=True)
class BlockLosses:
    """Costs of the tangents of one block's replicated losses, as `LOSSES`, a row a shape.

    Shapes are `(patches, groups)`.
    """

    shapes: tuple[tuple[int, int], ...]
    channels: int
    rounds: int = 0
    batch_size: int = 128
    bytes_to_run: float = 4e9

    def run(self) -> Mapping[str, np.ndarray]:
        found = [
            cost.measure(
                self.programs(*shape),
                self.rounds,
                bytes_to_run=self.bytes_to_run,
                num_labels=CLASSES,
            )
            for shape in self.shapes
        ]
        return {name: np.stack([one[name] for one in found]) for name in found[0]}

    def programs(self, patches: int, groups: int) -> dict[str, Program]:
        """The losses' slopes along a direction, fused and naive."""
        shape = (self.batch_size, patches, groups, self.channels // groups)
        features = jax.ShapeDtypeStruct(shape, jnp.float32)
        head = jax.ShapeDtypeStruct((self.channels, CLASSES), jnp.float32)
        labels = jax.ShapeDtypeStruct((self.batch_size,), jnp.int32)

        def slopes(features, tangent, head, labels, replicate):
            def losses(x):
                return replicate(pooled_loss, x, head, labels)

            return jax.jvp(losses, (features,), (tangent,))[1]

        return {
            name: Program(
                functools.partial(slopes, replicate=REPLICATED[name]),
                (features, features, head, labels),
            )
            for name in LOSSES
        }

    def shrunk(self) -> "BlockLosses":
        small = tuple((min(p, 4), min(g, 4)) for p, g in self.shapes)
        return dataclasses.replace(
            self, shapes=small, channels=16, rounds=min(self.rounds, 2), batch_size=4
        )


def pooled_loss(pooled, head, labels):
    """Of a linear head on features `[batch, group, channel]`."""
    return softmax_cross_entropy(pooled.reshape(*pooled.shape[:-2], -1) @ head, labels)


SIZES = {"M/8/16": LocalMixer(), "L/8/64": LocalMixer(channels=2048, num_groups=64)}
ROUNDS = {"M/8/16": 7, "L/8/64": 3}
GROUPS, PATCHES = (1, 4, 16, 64), (1, 16, 64)
GRADIENTS = {size: Gradients(model, ROUNDS[size]) for size, model in SIZES.items()}
BLOCKS = {
    f"losses of one block, {size}": BlockLosses(
        ((model.patches_per_side**2, model.num_groups),), model.channels, rounds=ROUNDS[size]
    )
    for size, model in SIZES.items()
}
SWEEPS = {
    "losses against groups": BlockLosses(tuple((64, groups) for groups in GROUPS), 2048),
    "losses against patches": BlockLosses(tuple((patches, 64) for patches in PATCHES), 2048),
}


def draw(results: Results, theme: Theme) -> Figure:
    """Memory and time of the arms; memory of one block's losses against groups and patches."""
    figure, axes = panel.panels(2, 2)
    sizes = [size for size in GRADIENTS if size in results]
    for place, size in enumerate(sizes):
        found = results[size]
        bars(axes[0, 0], found["megabytes"] / 1e3, place, size, theme)
        middle, low, high = cost.ratios(found["seconds"]).T
        bars(axes[0, 1], middle, place, size, theme, (middle - low, high - middle))
    axes[0, 0].set(title="Memory of one gradient", ylabel="temporary memory, GB")
    axes[0, 1].set(title="Time of one gradient, where run", ylabel="ratio to BP")
    for axis in axes[0]:
        axis.set_xlim(-0.6, len(ARMS) - 0.4)
        axis.set_xticks(range(len(ARMS)), [arm.replace(" ", "\n") for arm in ARMS])
        if sizes:
            axis.legend()
    for axis, (label, ticks), name in zip(
        axes[1], zip(SWEEPS, (GROUPS, PATCHES), strict=True), ("groups", "patches"), strict=True
    ):
        if found := results.get(label):
            for place, (kind, memory) in enumerate(zip(LOSSES, found["megabytes"].T, strict=True)):
                colour = ensembles.layer_colour(place, theme)
                axis.plot(ticks, memory, "o-", color=colour, label=kind)
            axis.legend()
        axis.set(xscale="log", yscale="log", xlabel=name, ylabel="temporary memory, MB")
        axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axis.set_xticks([], minor=True)
        axis.set_title(f"Losses of one block, {fixed(name)}")
    return figure


def fixed(name: str) -> str:
    """What stays as it is while the other changes."""
    return "64 patches" if name == "groups" else "64 groups"


def bars(axis: Axes, heights: np.ndarray, place: int, size: str, theme: Theme, errors=None) -> None:
    """A group of bars an arm, one a size; an arm that was not run has none."""
    known = np.isfinite(heights)
    width = 0.8 / len(SIZES)
    axis.bar(
        np.arange(len(heights))[known] + (place - (len(SIZES) - 1) / 2) * width,
        heights[known],
        width,
        yerr=None if errors is None else np.stack(errors)[:, known],
        color=ensembles.layer_colour(place, theme),
        ecolor=axis.xaxis.label.get_color(),
        label=size,
    )


def findings(results: Results) -> Sequence[Finding]:
    """What fused losses save, and what they cost beside backpropagation."""
    bp, lg_bp, fused, naive = range(len(ARMS))
    large = results["L/8/64"]["megabytes"]
    block = results["losses of one block, L/8/64"]["megabytes"][0]
    found = [
        finding.at_most(
            "L/8/64, losses of one block: fused memory over naive",
            block[0] / block[1],
            1 / 20,
            "own bound",
            digits=4,
        ),
        finding.at_most(
            "L/8/64, one gradient: fused memory over naive (LG-BP's over it:"
            f" {large[lg_bp] / large[naive]:.3f})",
            large[fused] / large[naive],
            1 / 20,
            "own bound",
        ),
        finding.at_most(
            "M/8/16, one gradient: time of LG-FG-A, fused, over BP, median",
            cost.ratios(results["M/8/16"]["seconds"], bp)[fused, 0],
            1.1,
            "own bound",
        ),
    ]
    for size in SIZES:
        flops = results[size]["gigaflops"]
        found.append(
            finding.at_most(
                f"{size}, one gradient: FLOPs of LG-FG-A, fused, over BP",
                flops[fused] / flops[bp],
                1.0,
                "values, tangents and weights' gradients: as many products as BP's",
            )
        )
    return found + scaling(results)


def scaling(results: Results) -> list[Finding]:
    """How memory grows with groups and patches."""
    found = []
    for label, case in SWEEPS.items():
        fused, naive = results[label]["megabytes"].T
        patches, groups = np.array(case.shapes).T
        megabytes = 4e-6 * case.batch_size * case.channels * patches  # of the features, float32
        found += [
            finding.at_most(
                f"{label}: fused memory over that of the features",
                fused / megabytes,
                1.25,
                "one product of their size, and a few of the means' over patches",
            ),
            finding.at_least(
                f"{label}: naive memory over that of a copy of the features for every group",
                naive[groups > 1] / (megabytes * groups)[groups > 1],
                1.0,
                "each loss has features of its own",
            ),
        ]
    return found


RECIPE = Study(
    title="Figure 5: memory and step time of local losses, fused against naive",
    paper="Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses,"
    " arXiv 2210.03310",
    minutes=9,
    cases=GRADIENTS | BLOCKS | SWEEPS,
    draw=draw,
    findings=findings,
)
