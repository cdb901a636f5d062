"""Figure 7: the number of groups. More groups, each with a loss of its own, learn more.

Paper: Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses, arXiv
    2210.03310, figure 7
Command: python scripts/reproduce.py forward_gradient/groups
Time: 200 min on 2 cores
Expect: the error falls as groups are added, until about 8 channels are left to a group.

LocalMixer M/8 with 1 to 64 groups (512 to 8 channels each) under LG-FG-A on CIFAR-10 without
augmentation; the groups are those of the network and of its losses. One epoch, batches of 64, each
variant at its own rate, as in `forward_gradient/cifar10`; the paper's schedule is not known to us,
and the numbers of its figure neither.
"""

import itertools

from dfa_jax.data import ImageData
from dfa_jax.models import LocalMixer
from dfa_jax.optim import Optimizer
from dfa_jax.report.recipe import Order, Recipe, Tuning
from dfa_jax.rules import local_algorithms
from dfa_jax.train.config import TrainConfig

GROUPS = {"1 group": 1, "4 groups": 4, "16 groups": 16, "64 groups": 64}
SOURCE = "Ren et al. 2023, figure 7 of the submission"


def config(num_groups: int) -> TrainConfig:
    """One run."""
    return TrainConfig(
        data=ImageData("cifar10", standardize="channel"),
        model=LocalMixer(num_blocks=4, patches_per_side=8, channels=512, num_groups=num_groups),
        sites=("block_*/*_mixing",),
        blocks=("block_*",),
        rule=local_algorithms(num_groups)["LG-FG-A"],
        optimizer=Optimizer("sgd", learning_rate=0.03, momentum=0.9, schedule="cosine"),
        batch_size=64,
        num_epochs=1,
        eval_every=0.25,
        alignment_examples=0,
    )


CONFIG = config(16)
LABELS = list(GROUPS)
RECIPE = Recipe(
    title="Figure 7: the number of groups",
    paper="Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses,"
    " arXiv 2210.03310",
    minutes=200,
    variants={f"supervised/{label}": config(number) for label, number in GROUPS.items()},
    seeds=(0, 1, 2),
    orders=tuple(
        Order(f"supervised/{more}", f"supervised/{fewer}", SOURCE)
        for fewer, more in itertools.pairwise(LABELS)
    ),
    tuning=Tuning(num_epochs=0.125, num_validation=2500),
)
