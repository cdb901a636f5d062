"""Table 4, CIFAR-10: eleven algorithms learn features without labels.

Paper: Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses, arXiv
    2210.03310, table 4
Command: python scripts/reproduce.py forward_gradient/contrastive
Time: 6000 min on 2 cores
Expect: LG-FG-A is the best of the forward gradients and, on the large network, better than all
    forms of feedback alignment; backpropagation is best.

M/8/16 and L/8/64 with a projection of 128 units, on CIFAR-10; `--only 'M/8/16/*'` runs the smaller
one alone, in 400 min. NT-Xent at temperature 0.5 between two views of each image, with a stopped
comparison; local losses are NT-Xent on projections of their own. Views: crops of at least 0.3 of
the area (the paper: 0.3 to 0.5), flips, colours and greys as in BYOL, no blur, which hardly applies
to 32 pixels. Both views of an image share their noise, as in the published code. The errors are
those of a linear readout on the last block's mean over patches. The paper's schedule is not known
to us: here one epoch of SGD with momentum 0.9, a cosine schedule, batches of 64 images, weight
decay 1e-4, each variant at its own rate by the readout's error on 2,500 training examples.
"""

import dataclasses

from dfa_jax.data import ImageData
from dfa_jax.data.augment import BYOL_VIEW_1
from dfa_jax.models import LocalMixer
from dfa_jax.optim import Optimizer
from dfa_jax.report.recipe import Expected, Order, Recipe, Tuning
from dfa_jax.rules import LearningRule, local_algorithms
from dfa_jax.train.config import TrainConfig

VIEW = dataclasses.replace(BYOL_VIEW_1, crop_min_area=0.3, blur=0.0)
SIZES = {
    "M/8/16": LocalMixer(channels=512, num_groups=16, num_outputs=128, zero_readout=False),
    "L/8/64": LocalMixer(channels=2048, num_groups=64, num_outputs=128, zero_readout=False),
}
PUBLISHED = {  # test and train error, %
    "M/8/16": {
        "BP": (24.11, 21.08),
        "L-BP": (24.69, 21.80),
        "LG-BP": (29.63, 25.60),
        "FA": (45.87, 44.06),
        "L-FA": (37.73, 36.13),
        "LG-FA": (36.72, 34.06),
        "DFA": (46.09, 42.76),
        "FG-W": (53.37, 51.56),
        "FG-A": (54.59, 52.96),
        "LG-FG-W": (52.66, 50.23),
        "LG-FG-A": (32.88, 29.73),
    },
    "L/8/64": {
        "BP": (17.53, 13.35),
        "L-BP": (19.13, 13.60),
        "LG-BP": (23.62, 16.80),
        "FA": (67.93, 65.32),
        "L-FA": (31.05, 26.97),
        "LG-FA": (30.49, 25.56),
        "DFA": (39.26, 37.17),
        "FG-W": (50.45, 45.64),
        "FG-A": (56.63, 56.09),
        "LG-FG-W": (52.27, 48.67),
        "LG-FG-A": (26.81, 23.90),
    },
}
SOURCE = "Ren et al. 2023, table 4 of the submission"
ORDERS = (
    ("LG-FG-A", "FG-A"),
    ("LG-FG-A", "LG-FG-W"),
    ("LG-FG-A", "FG-W"),
    ("LG-FG-A", "LG-FA"),
    ("LG-FG-A", "DFA"),
    ("BP", "LG-BP"),
    ("LG-BP", "LG-FG-A"),
)


def config(model: LocalMixer, rule: LearningRule) -> TrainConfig:
    """One run."""
    return TrainConfig(
        data=ImageData("cifar10", standardize="channel"),
        model=model,
        sites=("block_*/*_mixing",),
        blocks=("block_*",),
        rule=rule,
        loss="nt_xent",
        augment=VIEW,
        second_view=VIEW,
        optimizer=Optimizer(
            "sgd", learning_rate=0.1, momentum=0.9, weight_decay=1e-4, schedule="cosine"
        ),
        batch_size=64,
        num_epochs=1,
        eval_every=0.5,
        alignment_examples=0,
    )


def algorithms(num_groups: int) -> dict[str, LearningRule]:
    """The eleven, whose activity perturbations are shared by the views of an image."""
    return local_algorithms(num_groups, sharing="pairs")


CONFIG = config(SIZES["M/8/16"], algorithms(16)["LG-FG-A"])
RECIPE = Recipe(
    title="Table 4, CIFAR-10: contrastive learning by forward gradients",
    paper="Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses,"
    " arXiv 2210.03310",
    minutes=6000,
    variants={
        f"{size}/{name}": config(model, rule)
        for size, model in SIZES.items()
        for name, rule in algorithms(model.num_groups).items()
    },
    seeds=(0, 1, 2),
    expected=tuple(
        Expected(f"{size}/{name}", quantity, value, None, SOURCE, "paper table")
        for size, numbers in PUBLISHED.items()
        for name, errors in numbers.items()
        for quantity, value in zip(("test error", "train error"), errors, strict=True)
    ),
    orders=tuple(
        Order(f"{size}/{better}", f"{size}/{worse}", SOURCE)
        for size in SIZES
        for better, worse in ORDERS
    ),
    tuning=Tuning(num_epochs=0.125, num_validation=2500),
)
