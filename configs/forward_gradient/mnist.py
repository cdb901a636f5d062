"""Table 3, MNIST: eleven algorithms on two LocalMixers.

Paper: Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses, arXiv
    2210.03310, table 3
Command: python scripts/reproduce.py forward_gradient/mnist
Time: 120 min on 2 cores
Expect: on M/1/16, local activity-perturbed forward gradients end within a few tenths of a per cent
    of backpropagation; without local losses, or perturbing weights, they end far above it.

MNIST at 28 x 28 pixels without augmentation; one block, so one local loss, whose replicas for 16
groups are what helps. The paper's optimiser, rates, batches and epochs for MNIST are not known to
us: here SGD with momentum 0.9, a cosine schedule, batches of 128, 20 epochs, no weight decay, and
for each algorithm the best of five rates by the error on 5,000 training examples after 4 epochs.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dfa_jax.data import ImageData
from dfa_jax.models import LocalMixer
from dfa_jax.optim import Optimizer
from dfa_jax.report import ensembles, finding, panel
from dfa_jax.report.finding import Finding
from dfa_jax.report.study import Results, Study
from dfa_jax.report.style import Theme
from dfa_jax.report.tuned import Tuned
from dfa_jax.rules import (
    ActivityForwardGradient,
    Backprop,
    DirectFeedbackAlignment,
    FeedbackAlignment,
    LearningRule,
    LocalLosses,
    WeightForwardGradient,
)
from dfa_jax.train.config import TrainConfig

RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
SIZES = {
    "S/1/1": LocalMixer(num_blocks=1, patches_per_side=1, channels=256, num_groups=1),
    "M/1/16": LocalMixer(num_blocks=1, patches_per_side=1, channels=512, num_groups=16),
}


def algorithms(num_groups: int) -> dict[str, LearningRule]:
    """The paper's eleven, by its names."""
    weights, activities = WeightForwardGradient(), ActivityForwardGradient(relu_mask=True)
    chain, feedback = Backprop(), FeedbackAlignment()
    places = {"patchwise": True, "num_groups": num_groups}
    return {
        "BP": chain,
        "L-BP": LocalLosses(chain, greedy=False),
        "LG-BP": LocalLosses(chain),
        "FA": feedback,
        "L-FA": LocalLosses(feedback, greedy=False),
        "LG-FA": LocalLosses(feedback),
        "DFA": DirectFeedbackAlignment(),
        "FG-W": weights,
        "FG-A": activities,
        "LG-FG-W": LocalLosses(weights, **places),
        "LG-FG-A": LocalLosses(activities, **places),
    }


def config(model: LocalMixer, rule: LearningRule) -> TrainConfig:
    """One run."""
    return TrainConfig(
        data=ImageData("mnist"),
        model=model,
        sites=("block_*/*_mixing",),
        blocks=("block_*",),
        rule=rule,
        optimizer=Optimizer("sgd", momentum=0.9, schedule="cosine"),
        batch_size=128,
        num_epochs=20,
        eval_every=4,
        alignment_examples=0,
    )


CASES = {
    f"{size}/{name}": Tuned(config(model, rule), RATES, tuning_epochs=4)
    for size, model in SIZES.items()
    for name, rule in algorithms(model.num_groups).items()
}
PUBLISHED = {  # test error, %
    "S/1/1": (2.66, 2.38, 2.43, 2.82, 3.21, 3.11, 3.31, 9.25, 3.24, 9.25, 3.24),
    "M/1/16": (2.41, 2.16, 2.81, 2.90, 2.90, 2.50, 3.17, 8.56, 3.76, 5.66, 2.55),
}
NAMES = tuple(algorithms(1))


def draw(results: Results, theme: Theme) -> Figure:
    """Test error against epochs, a panel a size and a colour an algorithm."""
    figure, axes = panel.panels(1, len(SIZES))
    for axis, size in zip(axes[0], SIZES, strict=True):
        for place, name in enumerate(NAMES):
            if found := results.get(f"{size}/{name}"):
                percent = 100 * found["test_error"].mean(1)
                colour = ensembles.layer_colour(place, theme)
                axis.plot(found["epoch"], percent, "o-", color=colour, label=name)
        axis.set(title=size, xlabel="epochs", ylabel="test error, %", yscale="log")
        if results:
            axis.legend(ncols=2, fontsize="small")
    return figure


def findings(results: Results) -> Sequence[Finding]:
    """Test errors against table 3, and the order that the paper's claim rests on."""
    found = []
    errors = {label: 100 * case["test_error"][-1] for label, case in results.items()}
    for size, numbers in PUBLISHED.items():
        found += [
            finding.near(
                f"{size}, {name}: test error, %",
                errors[f"{size}/{name}"],
                number,
                0.3,
                "table 3 of the submission",
            )
            for name, number in zip(NAMES, numbers, strict=True)
        ]
    mean = {name: float(np.mean(errors[f"M/1/16/{name}"])) for name in NAMES}
    for better, worse in (("LG-FG-A", "FG-A"), ("LG-FG-A", "LG-FG-W"), ("LG-FG-W", "FG-W")):
        found.append(
            finding.at_least(
                f"M/1/16: test error of {worse} less that of {better}, %",
                mean[worse] - mean[better],
                0.0,
                "table 3 of the submission",
            )
        )
    return found


RECIPE = Study(
    title="Table 3, MNIST: forward gradients with local losses",
    paper="Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses,"
    " arXiv 2210.03310",
    minutes=120,
    cases=CASES,
    draw=draw,
    findings=findings,
)
