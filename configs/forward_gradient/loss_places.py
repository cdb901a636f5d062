"""Figure 6: where local losses sit. Blocks, patches and groups, and all three together.

Paper: Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses, arXiv
    2210.03310, figure 6
Command: python scripts/reproduce.py forward_gradient/loss_places
Time: 300 min on 2 cores
Expect: each place lowers the error of activity-perturbed forward gradients, and all three together
    give the lowest.

LocalMixer M/8/16 on CIFAR-10 without augmentation, one network for all: only the losses move.
*One loss* is that of the last block alone, for all patches and groups at once, and no block is cut
off. One epoch, batches of 64, each variant at its own rate, as in `forward_gradient/cifar10`; the
paper's schedule is not known to us, and the numbers of its figure neither.
"""

from dfa_jax.data import ImageData
from dfa_jax.models import LocalMixer
from dfa_jax.optim import Optimizer
from dfa_jax.report.recipe import Order, Recipe, Tuning
from dfa_jax.rules import ActivityForwardGradient, LocalLosses
from dfa_jax.train.config import TrainConfig

MODEL = LocalMixer(num_blocks=4, patches_per_side=8, channels=512, num_groups=16)
PLACES = (
    "one loss",
    "block",
    "patch",
    "group",
    "block, patch",
    "block, group",
    "patch, group",
    "block, patch, group",
)
SOURCE = "Ren et al. 2023, figure 6 of the submission"


def config(places: str) -> TrainConfig:
    """One run."""
    rule = LocalLosses(
        ActivityForwardGradient(relu_mask=True),
        blockwise="block" in places,
        patchwise="patch" in places,
        num_groups=MODEL.num_groups if "group" in places else 1,
    )
    return TrainConfig(
        data=ImageData("cifar10", standardize="channel"),
        model=MODEL,
        sites=("block_*/*_mixing",),
        blocks=("block_*",),
        rule=rule,
        optimizer=Optimizer("sgd", learning_rate=0.03, momentum=0.9, schedule="cosine"),
        batch_size=64,
        num_epochs=1,
        eval_every=0.25,
        alignment_examples=0,
    )


CONFIG = config(PLACES[-1])
RECIPE = Recipe(
    title="Figure 6: where local losses sit",
    paper="Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses,"
    " arXiv 2210.03310",
    minutes=300,
    variants={f"supervised/{places}": config(places) for places in PLACES},
    seeds=(0, 1, 2),
    orders=tuple(
        Order(f"supervised/{PLACES[-1]}", f"supervised/{places}", SOURCE) for places in PLACES[:-1]
    ),
    tuning=Tuning(num_epochs=0.125, num_validation=2500),
)
