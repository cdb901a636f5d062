"""One run in progress: its state, its curve, and what it writes."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from dfa_jax import tree
from dfa_jax.data import Dataset, EpochShuffle, Stream, feed, num_examples
from dfa_jax.errors import DivergedError, InputError, reason
from dfa_jax.models import Model
from dfa_jax.train import compiled, hosts, interrupt, sharding, tensorboard
from dfa_jax.train.checkpoint import Checkpoints, Progress
from dfa_jax.train.config import TrainConfig, rule_name, to_dict
from dfa_jax.train.directory import RunDirectory
from dfa_jax.train.evaluation import mean_of_chunks
from dfa_jax.train.given import tried
from dfa_jax.train.interrupt import Interrupted
from dfa_jax.train.probe import linear_probe
from dfa_jax.train.program import Program
from dfa_jax.train.records import Evaluation, RunRecord, environment
from dfa_jax.train.state import TrainState
from dfa_jax.types import Batch, PRNGKey

STEPS_PER_DISPATCH = 100


class Result(NamedTuple):
    """A finished run: its record, the model, and the last state."""

    record: RunRecord
    model: Model
    state: TrainState


class Data(NamedTuple):
    """A data set where it is trained on: on every device, or as a stream."""

    train: Batch | Stream
    test: Batch | Stream

    @classmethod
    def placed(cls, dataset: Dataset, program: Program) -> "Data":
        """What is no stream is put on the devices."""
        everywhere = sharding.replicated(program.mesh)
        return cls(
            *(
                data if isinstance(data, Stream) else jax.device_put(data, everywhere)
                for data in (dataset.train, dataset.test)
            )
        )


class Files(NamedTuple):
    """Where a run is written down."""

    directory: RunDirectory
    checkpoints: Checkpoints
    events: pathlib.Path
    save_seconds: float
    replaces: bool

    @classmethod
    def open(
        cls,
        stack: contextlib.ExitStack,
        path: pathlib.Path,
        config: TrainConfig,
        *,
        resume: bool,
        overwrite: bool,
        save_seconds: float,
    ) -> "Files":
        """The run's files, closed with the stack.

        The first of several processes has the directory to itself; all write checkpoints.
        """

        def claim() -> bool:
            opened = RunDirectory.open(path, config, resume=resume, overwrite=overwrite)
            return stack.enter_context(contextlib.closing(opened)).replaces

        replaces = hosts.from_first(claim)
        hosts.check_shared(path)
        directory = RunDirectory(path)
        checkpoints = stack.enter_context(Checkpoints(directory.checkpoints, config))
        events = directory.tensorboard / f"events.out.tfevents.{time.time():.6f}"
        return cls(directory, checkpoints, events, save_seconds, replaces)

    def curve_until(self, step: int) -> list[Evaluation]:
        """See `RunDirectory.curve_until`; at step 0 it begins, and refuses to begin again."""

        def read() -> list[dict[str, Any]]:
            if not step:
                self.directory.check_begun()
            return [dataclasses.asdict(one) for one in self.directory.curve_until(step)]

        return [Evaluation(**fields) for fields in self._from_first(read, "the curve")]

    def add(self, evaluation: Evaluation) -> None:
        """Writes a point of the curve.

        Raises:
            InputError: it cannot be written.
        """

        def write() -> None:
            self.directory.append(evaluation)
            tensorboard.append(self.events, evaluation.step, evaluation.scalars)

        self._from_first(write, f"the evaluation of step {evaluation.step}")

    def drop_old(self) -> None:
        """Deletes the run that this one replaces.

        Raises:
            InputError: it cannot be deleted.
        """
        self._from_first(self.directory.drop_old, "the end of the run that is replaced")

    def finish(self, record: RunRecord) -> None:
        """Writes the record of the whole run.

        Raises:
            InputError: it cannot be written.
        """
        self._from_first(lambda: self.directory.finish(record), "the record")

    def _from_first(self, function: Callable[[], Any], what: str) -> Any:
        """What the first process finds, or that it could not write, told to all."""

        def attempt() -> Any:
            try:
                return function()
            except OSError as error:
                raise self.checkpoints.not_written(what, reason(error, 120)) from error

        return hosts.from_first(attempt)


class Run:
    """What is kept of a run between dispatches.

    Attributes:
        source: which examples make its steps.
        ends: after which steps it is evaluated.
        state: set by `start`; who takes steps replaces it.
        curve: the evaluations so far.
        since: the step of the last of them, 0 before the first.
        sums: of training metrics over the steps since then, in double precision and step by step,
            so that they do not depend on how the steps were dispatched.
        files: where it is written down, if anywhere; set before it begins.
        replaces: whether a run is set aside, which comes back unless `drop_old` is called.
    """

    state: TrainState
    files: Files | None = None
    replaces: bool = False

    def __init__(self, config: TrainConfig, program: Program, data: Data):
        self.config, self.program, self.data = config, program, data
        self.everywhere = sharding.replicated(program.mesh)
        num_train = num_examples(data.train)
        self.source = EpochShuffle(num_train, config.batch_size, config.seed)
        self.ends = config.evaluation_steps(program.num_steps, self.source.steps_per_epoch)
        self.curve: list[Evaluation] = []
        self._stand_at(Progress())
        self.started = self.saved = time.perf_counter()

    @property
    def kept(self) -> list[int]:
        """Steps of the checkpoints, the newest first."""
        return self.files.checkpoints.steps if self.files else []

    def write_to(self, files: Files) -> None:
        """Has the run written down; call it before it begins."""
        self.files, self.replaces = files, files.replaces

    def drop_old(self) -> None:
        """Deletes the run that this one replaces, now that it is known to run."""
        if self.files and self.replaces:
            self.files.drop_old()
        self.replaces = False

    def abstract_state(self) -> TrainState:
        """Shapes and types of the state.

        Raises:
            InputError: it cannot be drawn: no parameter has a name that was given, for instance;
                or the optimiser does not run on it.
        """
        init = functools.partial(compiled.draw_state, program=self.program)
        drawn = functools.partial(jax.eval_shape, init, *seed_keys(self.config), self._example())
        return tried(self.program.optimizer, drawn)

    def start(self) -> None:
        """Draws the state on the devices where it stays."""
        if self.files:
            self.curve = self.files.curve_until(0)
        self.state = compiled.draw_state(
            *seed_keys(self.config), self._example(), program=self.program
        )
        if self.program.is_weighted:
            self._check_weight()

    def _check_weight(self) -> None:
        """Refuses a first batch of which nothing counts."""
        (rows,) = self.source.indices(0, 1)
        batch = feed.some(self.data.train, rows, self.everywhere)
        state = (self.state.params, self.state.model_state)
        weight = float(compiled.weight_of(*state, batch, program=self.program))
        if not weight > 0:
            raise InputError(
                f"the weights of the loss sum to {weight:g} on the first batch, before any update;"
                " expected a positive sum: check the loss function, and the data's masks"
            )

    def restore(self, step: int) -> None:
        """Takes the state, and where the run stood, from the checkpoint of this step.

        Raises:
            DamagedError: see `Checkpoints.restore`.
        """
        assert self.files
        abstract = self.abstract_state()
        shardings = sharding.state_shardings(self.program.mesh, abstract)
        like = sharding.placed(abstract, shardings)
        self.state, progress = self.files.checkpoints.restore(like, step)
        self.curve = self.files.curve_until(progress.since) if progress.since else []
        self._stand_at(progress)

    def _example(self) -> Batch:
        return feed.first(self.data.train, self.config.batch_size, self.everywhere)

    def _stand_at(self, progress: Progress) -> None:
        self.since, sums, self.elapsed_before = progress
        self.sums = dict.fromkeys(self.program.metric_names, 0.0) | dict(sums)

    def note(self, begin: int, stop: int, found: dict[str, Array]) -> None:
        """Adds the metrics of these steps up.

        Raises:
            DivergedError: a loss is not finite; it names the first step with such a loss.
            InputError: that is the first one.
        """
        number = stop - begin
        noted = {name: np.asarray(values)[:number].tolist() for name, values in found.items()}
        if not begin and not math.isfinite(noted["loss"][0]):
            raise InputError(
                f"the loss is {noted['loss'][0]} at step 0, before any update: no learning rate"
                " mends that; check the loss function, the model's start, and the data"
            )
        for i, loss in enumerate(noted["loss"]):
            self.check_finite(loss, f"the loss is {loss} at step {begin + i}")
        for name, values in noted.items():
            self.sums[name] = sum(values, start=self.sums[name])

    def check_finite(self, loss: float, finding: str) -> None:
        """Stops a run that has diverged, before it is recorded or checkpointed."""
        if not math.isfinite(loss):
            kept = f"; the state of step {self.kept[0]} is kept" if self.kept else ""
            rate = self.config.learning_rate
            remedy = f"--optimizer.learning-rate (now {rate}) or set --optimizer.clip-norm"
            if rate is None:
                remedy = "the optimizer's learning rate or clip its gradients"
            raise DivergedError(f"{finding}{kept}; lower {remedy}")

    def record_point(self, step: int) -> None:
        """Evaluates the state after this step; writes down what came, the state if it is time."""
        number = step - self.since
        means = {name: total / number for name, total in self.sums.items()}
        evaluation = self._evaluate(step, means)
        self.curve.append(evaluation)
        self._stand_at(Progress(step, {}, self.elapsed_before))
        if self.files:
            # The curve goes first: a point without a checkpoint is made again on resume.
            self.files.add(evaluation)
            left = self.files.save_seconds - (time.perf_counter() - self.saved)
            if hosts.from_first(lambda: left <= 0):
                self.save()

    def save(self) -> None:
        """Writes the state down; nothing without a directory.

        Raises:
            DivergedError: a parameter is not finite, which the next step's loss would show.
            InputError: it cannot be written.
        """
        if not self.files:
            return
        step = int(self.state.step)
        if not compiled.all_finite(self.state.params, program=self.program):
            self.check_finite(math.nan, f"the parameters are not finite after step {step}")
        progress = Progress(self.since, self.sums, self._elapsed())
        self.files.checkpoints.save(self.state, progress)
        self.saved = time.perf_counter()

    def finish(self) -> Result:
        """The record of the whole run, written down."""
        record = RunRecord(
            recipe="",
            variant="",
            rule=rule_name(self.config.rule),
            seed=self.config.seed,
            num_params=tree.size(self.state.params),
            num_steps=self.program.num_steps,
            wall_seconds=self._elapsed(),
            config=to_dict(self.config),
            environment=environment(),
            curve=tuple(self.curve),
        )
        if self.files:
            self.files.finish(record)
        return Result(record, self.program.model, self.state)

    def _elapsed(self) -> float:
        return self.elapsed_before + time.perf_counter() - self.started

    def _evaluate(self, step: int, means: dict[str, float]) -> Evaluation:
        """Test set and per-site measurements, at this step."""
        tested = self._test(self.state)
        test_loss = tested["loss"]
        self.check_finite(test_loss, f"the test loss is {test_loss} after step {step}")
        measured: dict[str, Array] = {}
        if self.config.alignment_examples:
            number = self.config.alignment_examples
            examples = feed.first(self.data.train, number, self.everywhere)
            measured = compiled.measure_sites(self.state, examples, program=self.program)
        found = {name: float(value) for name, value in measured.items()}
        found = {name: value for name, value in found.items() if math.isfinite(value)}
        if self.config.decay_fraction:
            found |= self._decayed(step)
        if self.program.readout and step == self.program.num_steps:
            found |= self._probe()
        found["wall_seconds"] = self._elapsed()
        return Evaluation.of(step, step / self.source.steps_per_epoch, means, tested, found)

    def _test(self, state: TrainState) -> dict[str, float]:
        """Mean loss and metrics over the test set."""
        chunks = feed.chunks(self.data.test, self.everywhere)
        return mean_of_chunks(chunks, state, program=self.program)

    def _decayed(self, step: int) -> dict[str, float]:
        """The test loss of a branch whose rate falls to zero, which the run itself does not feel.

        A loss that is not finite is left out.
        """
        number = max(1, round(self.config.decay_fraction * step))
        branch = jax.tree.map(lambda a: a.copy(), self.state)  # steps write over what they get
        for begin, stop, data, order in feed.dispatches(
            self.data.train,
            self.source,
            step,
            step + number,
            most_steps=STEPS_PER_DISPATCH,
            sharding=sharding.over_steps(self.program.mesh),
        ):
            if hosts.most(self.program.mesh, interrupt.requested())[0]:
                raise Interrupted
            most = num_examples(data) if order is None else len(order)
            left = 1 - (np.arange(begin, begin + most) - step) / number
            factors = np.maximum(left, 0).astype(np.float32)
            branch, _ = compiled.run_steps(
                branch, data, order, stop - begin, factors, program=self.program
            )
        loss = self._test(branch)["loss"]
        found = {"decayed_steps": float(number)}
        return found | ({"decayed_test_loss": loss} if math.isfinite(loss) else {})

    def _probe(self) -> dict[str, float]:
        """Accuracies of a classifier fitted to the features of all training images as they are.

        Of a stream there is none: its features might not fit in memory either.
        """
        (train, test), model = self.data, self.program.model
        if isinstance(train, Stream) or isinstance(test, Stream):
            return {}
        place = self.config.readout.place
        state = self.state.model_state
        found = linear_probe(model, self.state.params, train, test, model_state=state, place=place)
        return {
            "probe_train_accuracy": found.train_accuracy,
            "probe_test_accuracy": found.test_accuracy,
        }


def seed_keys(config: TrainConfig) -> tuple[PRNGKey, PRNGKey | None]:
    """The run's key, and that of its feedback if it has one of its own."""
    own = config.feedback_seed
    return jax.random.key(config.seed), None if own is None else jax.random.key(own)
