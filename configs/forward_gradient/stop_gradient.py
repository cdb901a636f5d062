"""Figure 4: what a view is compared with counts as constant, or forward gradients fail.

Paper: Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses, arXiv
    2210.03310, figure 4
Command: python scripts/reproduce.py forward_gradient/stop_gradient
Time: 120 min on 2 cores
Expect: with noise that is shared by both views, LG-FG-A learns only if the comparison is stopped;
    noise of its own for each view learns without the stop too, and less than with it.

A LocalMixer of four blocks, 8 x 8 patches, 256 channels and one group, as in the paper, on CIFAR-10
under NT-Xent; views and schedule are those of `forward_gradient/contrastive`. Without the stop a
row's loss moves with other rows, so each replica is computed for itself (`aggregator="naive"`). The
numbers of the paper's figure are not known to us.
"""

import dataclasses

from dfa_jax.autodiff.replicate import Aggregator
from dfa_jax.data import ImageData
from dfa_jax.data.augment import BYOL_VIEW_1
from dfa_jax.models import LocalMixer
from dfa_jax.optim import Optimizer
from dfa_jax.report.recipe import Recipe, Tuning, orders
from dfa_jax.rules import ActivityForwardGradient, Backprop, LearningRule, LocalLosses
from dfa_jax.train.config import TrainConfig
from dfa_jax.train.given import LossName

VIEW = dataclasses.replace(BYOL_VIEW_1, crop_min_area=0.3, blur=0.0)
MODEL = LocalMixer(channels=256, num_groups=1, num_outputs=128, zero_readout=False)
SHARED = ActivityForwardGradient(relu_mask=True, sharing="pairs")
OWN = ActivityForwardGradient(relu_mask=True)
SOURCE = "Ren et al. 2023, figure 4 of the submission"


def config(rule: LearningRule, loss: LossName) -> TrainConfig:
    """One run."""
    return TrainConfig(
        data=ImageData("cifar10", standardize="channel"),
        model=MODEL,
        sites=("block_*/*_mixing",),
        blocks=("block_*",),
        rule=rule,
        loss=loss,
        augment=VIEW,
        second_view=VIEW,
        optimizer=Optimizer(
            "sgd", learning_rate=0.1, momentum=0.9, weight_decay=1e-4, schedule="cosine"
        ),
        batch_size=64,
        num_epochs=1,
        eval_every=0.25,
        alignment_examples=0,
    )


def local(estimator: ActivityForwardGradient, aggregator: Aggregator) -> LocalLosses:
    """LG-FG-A with a loss a block and patch."""
    return LocalLosses(estimator, patchwise=True, aggregator=aggregator)


VARIANTS = {
    "LG-BP, stopped": config(LocalLosses(Backprop()), "nt_xent"),
    "LG-BP, not stopped": config(LocalLosses(Backprop()), "nt_xent_unstopped"),
    "shared noise, stopped": config(local(SHARED, "fused"), "nt_xent"),
    "shared noise, not stopped": config(local(SHARED, "naive"), "nt_xent_unstopped"),
    "own noise, stopped": config(local(OWN, "fused"), "nt_xent"),
    "own noise, not stopped": config(local(OWN, "naive"), "nt_xent_unstopped"),
}
ORDERS = (
    ("shared noise, stopped", "shared noise, not stopped"),
    ("own noise, stopped", "own noise, not stopped"),
    ("own noise, not stopped", "shared noise, not stopped"),
)
CONFIG = VARIANTS["shared noise, stopped"]
RECIPE = Recipe(
    title="Figure 4: contrastive losses with and without a stopped comparison",
    paper="Ren, Kornblith, Liao and Hinton (2023), Scaling Forward Gradient with Local Losses,"
    " arXiv 2210.03310",
    minutes=120,
    variants=VARIANTS,
    seeds=(0, 1, 2),
    orders=orders(ORDERS, SOURCE),
    tuning=Tuning(num_epochs=0.125, num_validation=2500),
)
