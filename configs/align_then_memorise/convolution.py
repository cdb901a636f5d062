"""Convolutions: why weights that are shared over positions cannot align with random feedback.

Paper: Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428, the
    section on convolutional networks
Command: python scripts/reproduce.py align_then_memorise/convolution
Time: 12 min on 2 cores
Expect: the largest cosine that any kernel can have with random feedback is k / (d_in d_out), less
    than 2 % here; without weight sharing it is k / d_in. A convolutional network's lowest layer
    keeps a gradient alignment near zero, a locally connected one's does not.

CIFAR-10 resized to 16 x 16 pixels, two layers with kernels of 4 x 4 and 16 channels without padding
or biases, then a linear readout; 5,000 training examples, 30 epochs of plain SGD in batches of 32.
The paper's network has 64 channels on 32 x 32 pixels.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import numpy as np

from dfa_jax.data import ImageData
from dfa_jax.optim import Optimizer
from dfa_jax.report import ensembles, finding, panel
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.shrink import shrink_config
from dfa_jax.report.study import Results, Study
from dfa_jax.report.style import Theme
from dfa_jax.rules import DirectFeedbackAlignment
from dfa_jax.theory import convolution
from dfa_jax.train import fit
from dfa_jax.train.config import TrainConfig


class Layer(nn.Module):
    """`relu` of a convolution without padding, or of a locally connected map of the same shape."""

    channels: int
    kernel_size: int
    is_shared: bool

    @nn.compact
    def __call__(self, x):
        kind = nn.Conv if self.is_shared else nn.ConvLocal
        side = (self.kernel_size, self.kernel_size)
        return nn.relu(kind(self.channels, side, padding="VALID", use_bias=False)(x))


class Network(nn.Module):
    """Two such layers and a linear readout."""

    is_shared: bool
    channels: tuple[int, ...] = (16, 16)
    kernel_size: int = 4
    num_outputs: int = 10

    @nn.compact
    def __call__(self, images):
        h = images
        for i, channels in enumerate(self.channels):
            h = Layer(channels, self.kernel_size, self.is_shared, name=f"layer_{i}")(h)
        h = h.reshape(len(h), -1)
        return nn.Dense(self.num_outputs, use_bias=False, name="readout")(h)


@dataclasses.dataclass(frozen=True)
class Training:
    """Gradient alignment of both layers along training, over seeds."""

    config: TrainConfig
    seeds: tuple[int, ...] = (0, 1, 2)

    def run(self) -> Mapping[str, np.ndarray]:
        configs = [dataclasses.replace(self.config, seed=seed) for seed in self.seeds]
        curves = [fit(config, progress=False).record.curve for config in configs]
        names = [f"gradient_alignment/layer_{i}" for i in range(2)]
        return {
            "epoch": np.array([point.epoch for point in curves[0]]),
            "train_error": np.array([[1 - (p.train_accuracy or 0) for p in c] for c in curves]).T,
            **{n: np.array([[p.metrics[n] for p in c] for c in curves]).T for n in names},
        }

    def shrunk(self) -> "Training":
        small = shrink_config(self.config)
        data = dataclasses.replace(small.data, image_size=12)
        small = dataclasses.replace(small, data=data, model=small.model.clone(channels=(2, 2)))
        return dataclasses.replace(self, config=small, seeds=(0, 1))


@dataclasses.dataclass(frozen=True)
class Reach:
    """The largest cosine between random feedback and the matrix of any kernel."""

    input_size: int
    kernel_size: int
    is_shared: bool
    channels: int = 2
    num_classes: int = 10
    num_draws: int = 5

    def run(self) -> Mapping[str, np.ndarray]:
        output_size = convolution.output_size(self.input_size, self.kernel_size)

        def one(key):
            target = convolution.random_target(
                key, self.input_size, self.channels, output_size, self.channels, self.num_classes
            )
            return convolution.reachable_alignment(target, self.kernel_size, shared=self.is_shared)

        keys = jax.random.split(jax.random.key(0), self.num_draws)
        return {"cosine": np.asarray(jax.lax.map(jax.jit(one), keys))}

    def shrunk(self) -> "Reach":
        return dataclasses.replace(self, input_size=8, kernel_size=3, num_draws=2)


def config(is_shared: bool) -> TrainConfig:
    """One network's run."""
    return TrainConfig(
        data=ImageData("cifar10", num_train=5000, num_test=1000, image_size=16),
        model=Network(is_shared),
        rule=DirectFeedbackAlignment(feedback_distribution="uniform"),
        optimizer=Optimizer("sgd", learning_rate=0.032),
        batch_size=32,
        num_epochs=30,
        eval_every=2,
        feedback_seed=0,
    )


KINDS = {True: "convolution", False: "locally connected"}
GEOMETRIES = ((32, 4), (29, 4), (25, 8), (16, 4))
TRAININGS = {kind: Training(config(is_shared)) for is_shared, kind in KINDS.items()}
REACHES = {
    f"reach, {kind}, side {side}, kernel {k}": Reach(side, k, is_shared)
    for is_shared, kind in KINDS.items()
    for side, k in GEOMETRIES
}


def draw(results: Results, theme: Theme) -> Figure:
    """Gradient alignment of both layers against epochs, shared weights and not."""
    figure, axes = panel.panels(1, len(TRAININGS))
    for axis, kind in zip(axes[0], TRAININGS, strict=True):
        for place in range(2):
            if found := results.get(kind):
                curve = ensembles.over_epochs(found, f"gradient_alignment/layer_{place}")
                colour = ensembles.layer_colour(place, theme)
                ensembles.draw(axis, curve, colour, label=f"layer {place + 1}")
        axis.set(title=kind, ylabel="gradient alignment", ylim=(-0.1, 1))
        if kind in results:
            axis.legend()
    return figure


def findings(results: Results) -> Sequence[Finding]:
    """The bounds, and the lowest layer's alignment."""
    found = []
    for label, case in REACHES.items():
        expected = convolution.expected_alignment(
            case.input_size, case.kernel_size, shared=case.is_shared
        )
        cosines = results[label]["cosine"]
        formula = "k / (d_in d_out)" if case.is_shared else "k / d_in"
        found.append(
            finding.near(
                f"{label}: largest cosine", cosines, expected, 0.1 * expected, formula, digits=4
            )
        )
    shared, local = (results[kind]["gradient_alignment/layer_0"][-1] for kind in TRAININGS)
    found += [
        finding.at_most(
            "convolution: gradient alignment of the lowest layer at the end",
            np.abs(shared),
            0.05,
            "about 0.002 at the paper's size, read off the authors' plots",
        ),
        finding.at_least(
            "the same, locally connected less convolution",
            float(np.mean(local - shared)),
            0.05,
            "the argument above",
        ),
    ]
    return found


RECIPE = Study(
    title="Convolutions: the reach of shared weights",
    paper="Refinetti, d'Ascoli, Ohana and Goldt (2021), Align, then memorise, arXiv 2011.12428",
    minutes=12,
    cases=TRAININGS | REACHES,
    draw=draw,
    findings=findings,
)
