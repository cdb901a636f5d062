"""Table 3, ImageNet: eleven algorithms on a LocalMixer with a quarter of a million losses.

Paper: Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses, arXiv
    2210.03310, table 3
Command: python scripts/reproduce.py forward_gradient/imagenet
Time: 1.3e+08 min on 2 cores, counted and not run
Expect: LG-FG-A far ahead of all forms of feedback alignment, and a few points behind LG-BP; global
    forward gradients no better than chance.

L/32/64 on images of 224 x 224 pixels, streamed from TFDS `imagenet2012` (docs/data.md). Settings of
the published configuration: SGD with momentum 0.9 at 0.05, ten epochs of warm-up and a cosine to
zero over 120, weight decay 1e-4 as part of the gradient, batches of 256, a tenth of the rate for
the readout, normalisation in front of all heads; crops of at least 0.3 of the area, flips and
colours as in BYOL, without blur. That configuration is of LG-FG-A; the rates of the others are not
known to us, and a tuning of each would cost as much again: `--only LG-FG-A` is the one to begin
with. Crops are taken from the largest square in the middle of an image.

An image costs 19.9 billion products forwards, so a run is 1.8e19 FLOPs under the 6 N D convention:
seven years on 2 cores, half an hour on 256 chips that sustain 4e13 FLOP/s each.
"""

import dataclasses

from dfa_jax.data import ImageData
from dfa_jax.data.augment import BYOL_VIEW_1
from dfa_jax.models import LocalMixer
from dfa_jax.optim import Optimizer
from dfa_jax.report.recipe import Expected, Order, Recipe
from dfa_jax.rules import LearningRule, LocalLosses, local_algorithms
from dfa_jax.train.config import TrainConfig

MODEL = LocalMixer(
    num_blocks=4,
    patches_per_side=32,
    channels=2048,
    num_groups=64,
    num_outputs=1000,
    normalize_readout=True,
)
PUBLISHED = {  # test and train error, %
    "BP": (36.82, 14.69),
    "L-BP": (42.38, 22.80),
    "LG-BP": (54.37, 39.66),
    "FA": (94.55, 94.13),
    "L-FA": (87.20, 85.69),
    "LG-FA": (85.45, 82.83),
    "DFA": (91.17, 90.28),
    "FG-W": (97.71, 97.58),
    "FG-A": (98.83, 98.80),
    "LG-FG-W": (97.39, 97.29),
    "LG-FG-A": (58.37, 44.86),
}
SOURCE = "Ren et al. 2023, table 3 of the submission"
ORDERS = (("LG-FG-A", "LG-FA"), ("LG-FG-A", "DFA"), ("LG-FG-A", "FG-A"), ("LG-BP", "LG-FG-A"))


def normalized(rule: LearningRule) -> LearningRule:
    """Local losses whose heads read normalised features."""
    return dataclasses.replace(rule, normalize=True) if isinstance(rule, LocalLosses) else rule


def config(rule: LearningRule) -> TrainConfig:
    """One run."""
    return TrainConfig(
        data=ImageData("imagenet2012", image_size=224, standardize="channel", stream=True),
        model=MODEL,
        sites=("block_*/*_mixing",),
        blocks=("block_*",),
        rule=normalized(rule),
        augment=dataclasses.replace(BYOL_VIEW_1, crop_min_area=0.3, blur=0.0),
        optimizer=Optimizer(
            "sgd",
            learning_rate=0.05,
            momentum=0.9,
            weight_decay=1e-4,
            decay="coupled",
            readout_factor=0.1,
            schedule="cosine",
            warmup_fraction=10 / 120,
        ),
        batch_size=256,
        num_epochs=120,
        eval_every=5,
        alignment_examples=0,
    )


ALGORITHMS = local_algorithms(MODEL.num_groups)
CONFIG = config(ALGORITHMS["LG-FG-A"])
RECIPE = Recipe(
    title="Table 3, ImageNet: forward gradients with local losses",
    paper="Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses,"
    " arXiv 2210.03310",
    minutes=1.3e8,
    variants={name: config(rule) for name, rule in ALGORITHMS.items()},
    seeds=(0, 1, 2),
    expected=tuple(
        Expected(name, quantity, value, None, SOURCE, "paper table")
        for name, errors in PUBLISHED.items()
        for quantity, value in zip(("test error", "train error"), errors, strict=True)
    ),
    orders=tuple(Order(better, worse, SOURCE) for better, worse in ORDERS),
)
