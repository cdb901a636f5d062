"""A configuration whose learning rate is tuned on a validation split before its seeds are run."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from dfa_jax.data import ImageData
from dfa_jax.errors import DivergedError, InputError
from dfa_jax.report.shrink import shrink_config
from dfa_jax.train import fit
from dfa_jax.train.config import TrainConfig
from dfa_jax.train.records import Evaluation


@dataclasses.dataclass(frozen=True)
class Tuned:
    """Runs over seeds at the learning rate that a short search found best.

    The search trains the first seed at every rate, on the training set without the validation
    examples, which are cut from it; the test set is not looked at. A rate that diverges counts as
    the worst.

    Attributes:
        config: the run; its learning rate is replaced.
        rates: learning rates to try.
        seeds: of the runs at the best rate, on the whole training set.
        tuning_epochs: length of the search's runs.
        num_validation: training examples set aside in the search.
    """

    config: TrainConfig
    rates: tuple[float, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_epochs: float = 5.0
    num_validation: int = 5000

    def __post_init__(self):
        if not (self.rates and self.seeds and self.num_validation > 0):
            raise InputError(
                f"rates are {self.rates}, seeds {self.seeds}, num_validation {self.num_validation};"
                " expected at least one of each"
            )
        if not isinstance(self.config.data, ImageData):
            raise InputError("tuning needs image data, from which a validation split is cut")

    def run(self) -> Mapping[str, np.ndarray]:
        """The grid with its validation errors, the rate chosen, and the errors at it, fractions.

        `rates`, `validation_error` `[rate]`; `rate`; `epoch` `[time]`; `test_error`, `train_error`
        and `train_loss` `[time, seed]`.
        """
        validation = np.array([self._validation_error(rate) for rate in self.rates])
        rate = self.rates[int(np.argmin(validation))]
        curves = [self._curve(self.config, rate, seed) for seed in self.seeds]
        return {
            "rates": np.array(self.rates),
            "validation_error": validation,
            "rate": np.array(rate),
            "epoch": np.array([point.epoch for point in curves[0]]),
            "test_error": np.array([[1 - p.test_accuracy for p in c] for c in curves]).T,
            "train_error": np.array([[1 - p.train_accuracy for p in c] for c in curves]).T,
            "train_loss": np.array([[p.train_loss for p in c] for c in curves]).T,
        }

    def _validation_error(self, rate: float) -> float:
        """At the end of a short run; 1 if it diverges."""
        data = dataclasses.replace(self.config.data, num_validation=self.num_validation)
        short = dataclasses.replace(self.config, data=data, num_epochs=self.tuning_epochs)
        try:
            return 1 - self._curve(short, rate, self.seeds[0])[-1].test_accuracy
        except DivergedError:
            return 1.0

    def _curve(self, config: TrainConfig, rate: float, seed: int) -> tuple[Evaluation, ...]:
        optimizer = dataclasses.replace(config.optimizer, learning_rate=rate)
        config = dataclasses.replace(config, optimizer=optimizer, seed=seed)
        return fit(config, progress=False).record.curve

    def shrunk(self) -> "Tuned":
        """Two rates, one seed, a small network on few examples."""
        small = {"seeds": self.seeds[:1], "tuning_epochs": 1.0, "num_validation": 32}
        config = shrink_config(self.config)
        return dataclasses.replace(self, config=config, rates=self.rates[:2], **small)
