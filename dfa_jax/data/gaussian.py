"""`GaussianTargets`: inputs and targets that have nothing to do with each other; to memorise."""

import dataclasses
import math

import numpy as np

from dfa_jax.data.base import Dataset
from dfa_jax.errors import InputError
from dfa_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class GaussianTargets:
    r"""Inputs `x ~ N(0, I)` and, independent of them, two targets with the covariance

        [[1, alpha (1 - beta)], [alpha (1 - beta), alpha^2]].

    At `alpha = beta = 1` the targets are white; smaller values make their covariance, and with it
    the alignment matrices of a network that memorises them, ill-conditioned.

    Attributes:
        alpha: ratio of the targets' standard deviations, above 0 and up to 1.
        beta: 0 makes the targets proportional to each other, 1 independent.
        num_train: examples; there are as many to test on, on which nothing can be learned.
        num_inputs: dimensions of `x`.
        seed: of the examples.

    Source: Refinetti et al. (2021), arXiv 2011.12428.
    """

    alpha: float = 1.0
    beta: float = 1.0
    num_train: int = 1000
    num_inputs: int = 9
    seed: int = 0

    def __post_init__(self):
        if not (0 < self.alpha <= 1 and 0 <= self.beta <= 1):
            raise InputError(
                f"alpha is {self.alpha}, beta {self.beta}; expected 0 < alpha <= 1, 0 <= beta <= 1"
            )
        if self.num_train < 1 or self.num_inputs < 1:
            raise InputError(
                f"num_train is {self.num_train}, num_inputs {self.num_inputs}; expected at least 1"
            )

    def load(self) -> Dataset:
        """Draws the examples."""
        random = np.random.RandomState(self.seed)
        train, test = (self._draw(random) for _ in range(2))
        return Dataset("gaussian_targets", train, test, num_classes=2)

    def _draw(self, random: np.random.RandomState) -> Batch:
        inputs = random.standard_normal((self.num_train, self.num_inputs))
        first, other = random.standard_normal((2, self.num_train))
        correlation = 1 - self.beta
        second = self.alpha * (correlation * first + math.sqrt(1 - correlation**2) * other)
        targets = np.stack([first, second], 1)
        return Batch(inputs.astype(np.float32), targets.astype(np.float32))
