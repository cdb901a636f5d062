"""Which gradient guess is worth a forward gradient's slope? Local losses against noise, CIFAR-10.

Paper: Fournier, Rivaud, Belilovsky, Eickenberg and Oyallon (2023), Can Forward Gradient Match
    Backpropagation?, arXiv 2306.06968
Command: python scripts/reproduce.py forward_gradient/gradient_guess
Time: 25 min on 2 cores
Expect: the slope of the true loss along a trained local classifier's gradient learns far better
    than along noise; a classifier that is fixed or drawn anew is between them. Descending the local
    losses themselves is as good as backpropagation in so shallow a network.

A perceptron of four layers of 512 units, a block each, on 20,000 images of CIFAR-10 resized to
16 x 16, 10 epochs. The last block and the readout have the true gradient. Guesses are made for the
errors at the ends of blocks (activities) or for the gradients of their weights (weights), toward
the loss of the outputs; or toward the local classifier's own (local target), which its own gradient
hits exactly in either space.

Not as in the paper: its network is a ResNet-18 with batch normalisation in 8 or 16 blocks, its
auxiliary networks are convolutional, here linear; it trains on all of CIFAR-10 for 100 epochs, with
weight decay and augmentation. Its tables of results are not known to us: the verdict is the order
that its abstract states. SGD with momentum 0.9 at batch 128, as there, the rate decaying to zero
from the paper's 0.05; noise gives estimates as much longer as there are units or weights that share
a slope, so there it is 5e-4: in 2 epochs on 2,500 validation images all four kinds of noise learn
at it, and three of them diverge at 5e-3.
"""

from dfa_jax.data import ImageData
from dfa_jax.models import MLP
from dfa_jax.optim import Optimizer
from dfa_jax.report.recipe import Expected, Order, Recipe
from dfa_jax.rules import Backprop, GradientGuess, LearningRule
from dfa_jax.rules.gradient_guess import Guess, Space
from dfa_jax.train.config import TrainConfig

RATE, RATE_OF_NOISE = 0.05, 5e-4
GUESSES: tuple[Guess, ...] = ("random", "fixed", "reinitialised", "local")
SPACES: tuple[Space, ...] = ("activities", "weights")
RULES: dict[str, LearningRule] = {
    "activities/backprop": Backprop(),
    **{
        f"{space}/{guess}": GradientGuess(guess, space=space)
        for space in SPACES
        for guess in GUESSES
    },
    "local target/random": GradientGuess("random", "local"),
    "local target/random, weights": GradientGuess("random", "local", "weights"),
    "local target/fixed": GradientGuess("fixed", "local"),
    "local target/reinitialised": GradientGuess("reinitialised", "local"),
    "local target/local": GradientGuess("local", "local"),
}


def config(rule: LearningRule) -> TrainConfig:
    """The run of one rule."""
    is_noise = isinstance(rule, GradientGuess) and rule.guess == "random"
    return TrainConfig(
        data=ImageData("cifar10", num_train=20_000, image_size=16, standardize="channel"),
        model=MLP(widths=(512,) * 4, activation="relu"),
        sites=("layer_*",),
        blocks=("layer_*",),
        rule=rule,
        optimizer=Optimizer(
            "sgd",
            learning_rate=RATE_OF_NOISE if is_noise else RATE,
            momentum=0.9,
            schedule="cosine",
        ),
        batch_size=128,
        num_epochs=10,
        eval_every=2,
        alignment_examples=256,
    )


SOURCE = "Fournier et al. 2023, abstract"
CONFIG = config(RULES["activities/local"])
EXPECTED: tuple[Expected, ...] = ()
RECIPE = Recipe(
    title="Gradient guesses: local losses against noise, CIFAR-10",
    paper="Fournier, Rivaud, Belilovsky, Eickenberg and Oyallon (2023), Can Forward Gradient Match"
    " Backpropagation?, arXiv 2306.06968",
    minutes=25,
    variants={label: config(rule) for label, rule in RULES.items()},
    seeds=(0, 1, 2),
    expected=EXPECTED,
    orders=tuple(Order(f"{space}/local", f"{space}/random", SOURCE) for space in SPACES),
)
