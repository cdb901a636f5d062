"""How deep can feedback alignment train? 1 to 20 hidden layers on MNIST, four learning rules.

Paper: Nøkland (2016), Direct Feedback Alignment Provides Learning in Deep Neural Networks,
    arXiv 1609.01596, the deep networks of the MNIST results
Command: python scripts/reproduce.py direct_feedback_alignment/depth
Time: 35 min on 2 cores
Expect: direct feedback alignment loses little with depth, since every layer hears from the output
    itself; feedback alignment's error passes a random matrix for each layer above, so its alignment
    falls towards the input.

Layers of 240 tanh units, as in the paper, which has 7 and 100 of them. Not as in the paper:
cross-entropy on a softmax in place of ten sigmoids; standardised pixels; 5 epochs of Adam at batch
128, its rate, one for all rules, decaying to zero, in place of 300 epochs of RMSprop at batch 64;
weights start from LeCun's normal, where the paper's start from zero.
"""

from dfa_jax.data import ImageData
from dfa_jax.models import MLP
from dfa_jax.optim import Optimizer
from dfa_jax.report.recipe import Expected, Recipe
from dfa_jax.rules import Backprop, DirectFeedbackAlignment, FeedbackAlignment, Shallow
from dfa_jax.train.config import TrainConfig

DEPTHS = (1, 2, 4, 7, 13, 20)
RULES = {
    "backprop": Backprop(),
    "feedback_alignment": FeedbackAlignment(feedback_distribution="uniform"),
    "direct_feedback_alignment": DirectFeedbackAlignment(feedback_distribution="uniform"),
    "shallow": Shallow(),
}
LEARNING_RATE = 3e-4  # for all rules; at 1e-3 backprop does not train 20 layers
PUBLISHED_AT_7 = {
    "backprop": (2.16, 0.13),
    "feedback_alignment": (2.20, 0.13),
    "direct_feedback_alignment": (2.32, 0.15),
}


def label(depth: int, rule: str) -> str:
    """A variant's label."""
    return f"{depth} layer{'s' * (depth > 1)}/{rule}"


def config(depth: int, rule: str) -> TrainConfig:
    """The run of one rule at one depth."""
    return TrainConfig(
        data=ImageData("mnist"),
        model=MLP(widths=(240,) * depth, activation="tanh"),
        rule=RULES[rule],
        optimizer=Optimizer("adam", learning_rate=LEARNING_RATE, schedule="cosine"),
        batch_size=128,
        num_epochs=5,
        eval_every=1,
    )


CONFIG = config(20, "direct_feedback_alignment")
EXPECTED = tuple(
    Expected(
        label(7, rule),
        "test error",
        value,
        tolerance,
        "Nøkland 2016, MNIST table",
        "memory, unverified",
    )
    for rule, (value, tolerance) in PUBLISHED_AT_7.items()
)
RECIPE = Recipe(
    title="How deep can feedback alignment train? 1 to 20 hidden layers on MNIST",
    paper=(
        "Nøkland (2016), Direct Feedback Alignment Provides Learning in Deep Neural Networks,"
        " arXiv 1609.01596"
    ),
    minutes=35,
    variants={label(depth, rule): config(depth, rule) for depth in DEPTHS for rule in RULES},
    seeds=(0, 1, 2, 3, 4),
    expected=EXPECTED,
    figure="depth",
)
