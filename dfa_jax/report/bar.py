"""One bar over the steps of all that a recipe still lacks: the run under way, and the time left."""

import pathlib

from dfa_jax.data import EpochShuffle, num_examples
from dfa_jax.report import plan, tuning
from dfa_jax.report.recipe import Recipe
from dfa_jax.train import records
from dfa_jax.train.config import TrainConfig


class Bar:
    """A bar on standard error, for what a recipe's records lack.

    Attributes:
        steps: moved on by whoever trains, see `train.loop.fit`; silent unless the bar is shown.
    """

    def __init__(
        self, recipe: Recipe, path: pathlib.Path, data_dir: pathlib.Path | None, *, shown: bool
    ):
        """A bar for the records in `path`, of runs on data in `data_dir`."""
        import tqdm  # of an extra

        self.steps = tqdm.tqdm(
            unit="step",
            disable=not shown,
            dynamic_ncols=True,
            leave=False,
            smoothing=0,  # the mean pace: one run compiles, the next one takes a tenth of its time
        )
        self._recipe, self._path, self._data_dir = recipe, path, data_dir
        self._sizes: dict[object, int] = {}  # training examples by data set

    def begin(self, name: str, config: TrainConfig) -> None:
        """Names the run that comes, and counts what is missing anew: a search may have grown."""
        if self.steps.disable:
            return
        left = missing(self._recipe, self._path)
        self.steps.total = self.steps.n + sum(map(self._num_steps, left))
        rate = config.learning_rate
        self.steps.set_description(name if rate is None else f"{name}, rate {rate:g}")

    def _num_steps(self, config: TrainConfig) -> int:
        if config.num_tokens:
            return config.num_steps(1)
        data = plan.located(config, self._data_dir).data
        if data not in self._sizes:
            self._sizes[data] = num_examples(data.load().train)
        source = EpochShuffle(self._sizes[data], config.batch_size, config.seed)
        return config.num_steps(source.steps_per_epoch)


def say(line: str) -> None:
    """Prints a line above the bar, if there is one."""
    import tqdm

    tqdm.tqdm.write(line)


def missing(recipe: Recipe, path: pathlib.Path) -> list[TrainConfig]:
    """Runs that are not on record, and trials that are sure to be made before them."""
    left = [one.config for one in plan.missing(recipe, records.read_runs(path))]
    if recipe.tuning:
        found = tuning.errors(recipe, tuning.read(recipe, path.parent))
        steps = [f"{v}@{step:+d}" for v in found for step in tuning.wanted(found[v])]
        left += [tuning.trial(recipe, label) for label in steps]
    return left
