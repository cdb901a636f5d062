"""Table 4, ImageNet: eleven algorithms learn features of ImageNet without labels.

Paper: Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses, arXiv
    2210.03310, table 4
Command: python scripts/reproduce.py forward_gradient/imagenet_contrastive
Time: 1.7e+09 min on 2 cores, counted and not run
Expect: LG-FG-A ahead of all forms of feedback alignment and of the other forward gradients, and
    five points behind LG-BP.

L/32/64 with a projection of 128 units, streamed from TFDS `imagenet2012` (docs/data.md). Settings
of the published configuration: LARS with momentum 0.9 at 0.1 for every 256 images, ten epochs of
warm-up and a cosine to zero over 800, weight decay 1e-4, batches of 2,048 images, normalisation in
front of the readout, and BYOL's two views, but crops of at least 0.3 of the area as the paper says
(the configuration says 0.08). Both views of an image share their noise. That configuration is of
LG-FG-A; the rates of the others are not known to us: `--only LG-FG-A` is the one to begin with.

A run is 2.4e20 FLOPs under the 6 N D convention, two views an image: a century on 2 cores, seven
hours on 256 chips that sustain 4e13 FLOP/s each.
"""

import dataclasses

from dfa_jax.data import ImageData
from dfa_jax.data.augment import BYOL_VIEW_1, BYOL_VIEW_2
from dfa_jax.models import LocalMixer
from dfa_jax.optim import Optimizer
from dfa_jax.report.recipe import Expected, Order, Recipe
from dfa_jax.rules import LearningRule, local_algorithms
from dfa_jax.train.config import TrainConfig

MODEL = LocalMixer(
    num_blocks=4,
    patches_per_side=32,
    channels=2048,
    num_groups=64,
    num_outputs=128,
    zero_readout=False,
    normalize_readout=True,
)
BATCH_SIZE = 2048
PUBLISHED = {  # test and train error, %
    "BP": (55.66, 49.79),
    "L-BP": (59.11, 52.50),
    "LG-BP": (68.36, 62.53),
    "FA": (82.86, 80.21),
    "L-FA": (83.18, 79.80),
    "LG-FA": (82.57, 79.53),
    "DFA": (93.51, 92.51),
    "FG-W": (91.94, 89.69),
    "FG-A": (97.83, 97.79),
    "LG-FG-W": (91.36, 88.81),
    "LG-FG-A": (73.24, 66.89),
}
SOURCE = "Ren et al. 2023, table 4 of the submission"
ORDERS = (("LG-FG-A", "LG-FA"), ("LG-FG-A", "LG-FG-W"), ("LG-BP", "LG-FG-A"), ("BP", "LG-BP"))


def config(rule: LearningRule) -> TrainConfig:
    """One run."""
    return TrainConfig(
        data=ImageData("imagenet2012", image_size=224, standardize="channel", stream=True),
        model=MODEL,
        sites=("block_*/*_mixing",),
        blocks=("block_*",),
        rule=rule,
        loss="nt_xent",
        augment=dataclasses.replace(BYOL_VIEW_1, crop_min_area=0.3),
        second_view=dataclasses.replace(BYOL_VIEW_2, crop_min_area=0.3),
        optimizer=Optimizer(
            "lars",
            learning_rate=0.1 * BATCH_SIZE / 256,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="cosine",
            warmup_fraction=10 / 800,
        ),
        batch_size=BATCH_SIZE,
        num_epochs=800,
        eval_every=20,
        alignment_examples=0,
    )


ALGORITHMS = local_algorithms(MODEL.num_groups, sharing="pairs")
CONFIG = config(ALGORITHMS["LG-FG-A"])
RECIPE = Recipe(
    title="Table 4, ImageNet: contrastive learning by forward gradients",
    paper="Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses,"
    " arXiv 2210.03310",
    minutes=1.7e9,
    variants={name: config(rule) for name, rule in ALGORITHMS.items()},
    seeds=(0, 1, 2),
    expected=tuple(
        Expected(name, quantity, value, None, SOURCE, "paper table")
        for name, errors in PUBLISHED.items()
        for quantity, value in zip(("test error", "train error"), errors, strict=True)
    ),
    orders=tuple(Order(better, worse, SOURCE) for better, worse in ORDERS),
)
