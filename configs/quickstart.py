"""Four learning rules on handwritten digits, in less than a minute.

Paper: none
Command: python scripts/reproduce.py quickstart
Time: 1 min on 2 cores, compilation included; no download
Expect: backprop ends near 2 % test error, both alignment rules near 3 %, and the shallow control,
    whose hidden layers stay random, near 4 %.

A perceptron with two hidden layers of 128 tanh units on the 1,797 embedded digits of 8x8 pixels.
With 360 test images one mistake is 0.28 %: small differences between rules mean nothing here.
"""

from dfa_jax.data import ImageData
from dfa_jax.models import MLP
from dfa_jax.optim import Optimizer
from dfa_jax.report.recipe import Expected, Recipe
from dfa_jax.rules import RULES
from dfa_jax.train.config import TrainConfig

# Lowest error of 287 validation examples, mean of five seeds, among 1, 2, 5, 10 and 20 e-3.
LEARNING_RATES = {
    "backprop": 5e-3,
    "direct_feedback_alignment": 1e-2,
    "feedback_alignment": 1e-2,
    "shallow": 2e-2,
}


def config(rule: str) -> TrainConfig:
    """The run of one rule."""
    return TrainConfig(
        data=ImageData("digits"),
        model=MLP(widths=(128, 128), activation="tanh"),
        rule=RULES[rule](),
        optimizer=Optimizer("adam", learning_rate=LEARNING_RATES[rule], schedule="cosine"),
        batch_size=64,
        num_epochs=30,
        eval_every=2,
    )


CONFIG = config("direct_feedback_alignment")
EXPECTED: tuple[Expected, ...] = ()
RECIPE = Recipe(
    title="Four learning rules on handwritten digits, in less than a minute",
    paper="none",
    minutes=1,
    variants={rule: config(rule) for rule in LEARNING_RATES},
    seeds=(0, 1, 2, 3, 4),
    expected=EXPECTED,
)
