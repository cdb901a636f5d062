"""The loop: it schedules steps, evaluations and checkpoints, and computes nothing itself.

Many steps run in one dispatch, on data that is already on the device; while they run, the numbers
of the dispatch before are fetched and shown, and of a stream, the images of the next are decoded.
"""

import contextlib
import functools
import itertools
import math
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorboardX
import tqdm
from jaxtyping import Array, Int

from dfa_jax import metrics, tree
from dfa_jax.data import Dataset, EpochShuffle, Stream, feed
from dfa_jax.data.base import check_labels
from dfa_jax.errors import DivergedError, InputError
from dfa_jax.losses import LOSSES, softmax_cross_entropy
from dfa_jax.models import Model
from dfa_jax.train import sharding
from dfa_jax.train.checkpoint import Checkpoints
from dfa_jax.train.config import TrainConfig, rule_name, to_dict
from dfa_jax.train.directory import RunDirectory
from dfa_jax.train.probe import linear_probe
from dfa_jax.train.program import Program, make_program
from dfa_jax.train.records import Evaluation, RunRecord, environment
from dfa_jax.train.state import TrainState, init_state
from dfa_jax.train.step import train_step
from dfa_jax.types import Batch, Params, PRNGKey

STEPS_PER_DISPATCH = 100
_EVAL_BATCH = 500


class Result(NamedTuple):
    """A finished run: its record, the model, and the last state."""

    record: RunRecord
    model: Model
    state: TrainState


def fit(
    config: TrainConfig,
    *,
    run_dir: pathlib.Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Result:
    """Trains a model by a learning rule.

    Args:
        config: the run.
        run_dir: where configuration, curve, checkpoints and TensorBoard files go; nothing is
            written without it.
        resume: go on with the run in `run_dir` (or start it, if there is none).
        overwrite: replace the run in `run_dir`.
        progress: show a bar with loss, accuracy, steps/s and the time left.

    Raises:
        InputError: the configuration cannot be run here (before any work), `run_dir` is taken, or
            the loss is no longer finite.

    >>> from dfa_jax.data import ImageData
    >>> few = TrainConfig(data=ImageData(num_train=256), batch_size=64, num_epochs=1)
    >>> fit(few, progress=False).record.num_steps
    4
    """
    dataset = config.data.load()
    check_labels(dataset)
    if not np.issubdtype(dataset.train.targets.dtype, np.integer):
        raise InputError(
            f"data set '{dataset.name}' has no classes, and a run reports accuracy; train it with"
            " train.ensemble.fit_ensemble, or choose a set with labels"
        )
    source = EpochShuffle(len(dataset.train.targets), config.batch_size, config.seed)
    program = make_program(config, dataset, config.num_steps(source.steps_per_epoch))
    run = _Run(config, program, dataset, source)
    if run_dir is None:
        return run.train(progress)
    directory = RunDirectory.open(pathlib.Path(run_dir), config, resume=resume, overwrite=overwrite)
    with Checkpoints(directory.checkpoints) as checkpoints:
        return run.train(progress, directory, checkpoints)


class _Run:
    """One run in progress: what the loop keeps between dispatches."""

    def __init__(
        self, config: TrainConfig, program: Program, dataset: Dataset, source: EpochShuffle
    ):
        self.config, self.program, self.source = config, program, source
        self.everywhere = sharding.replicated(program.mesh)
        self.train_data, self.test_data = (
            data if isinstance(data, Stream) else jax.device_put(data, self.everywhere)
            for data in (dataset.train, dataset.test)
        )
        self.ends = config.evaluation_steps(program.num_steps, source.steps_per_epoch)
        self.curve: list[Evaluation] = []
        self.elapsed_before = 0.0
        self.started = time.perf_counter()

    def train(
        self,
        progress: bool,
        directory: RunDirectory | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> Result:
        """From the start or the last checkpoint to the end."""
        state = self._initial_state(directory, checkpoints)
        first = int(state.step)
        with (
            _open_writer(directory) as writer,
            tqdm.tqdm(
                total=self.program.num_steps,
                initial=first,
                unit="step",
                desc=rule_name(self.config.rule),
                disable=not progress,
            ) as bar,
        ):
            step = first
            for end in (end for end in self.ends if end > first):
                state, means = self._steps(state, step, end, bar)
                evaluation = self._evaluate(state, end, means)
                self.curve.append(evaluation)
                if directory and checkpoints and writer:
                    # The curve goes first: a point without a checkpoint is made again on resume.
                    directory.append(evaluation)
                    _write_scalars(writer, evaluation)
                    checkpoints.save(state)
                step = end
        record = self._record(state)
        if directory:
            directory.finish(record)
        return Result(record, self.program.model, state)

    def _initial_state(
        self, directory: RunDirectory | None, checkpoints: Checkpoints | None
    ) -> TrainState:
        """Freshly drawn on the devices where it stays, or restored there."""
        example = feed.first(self.train_data, self.config.batch_size, self.everywhere)
        keys = seed_keys(self.config)
        init = functools.partial(draw_state, program=self.program)
        abstract = jax.eval_shape(init, *keys, example)
        shardings = sharding.state_shardings(self.program.mesh, abstract)
        if directory and checkpoints and checkpoints.latest is not None:
            like = jax.tree.map(
                lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
            )
            state = checkpoints.restore(like)
            self.curve = directory.curve_until(int(state.step))
            self.elapsed_before = self.curve[-1].metrics["wall_seconds"]
            return state
        if directory:
            directory.curve_until(0)
        return init(*keys, example)

    def _steps(
        self, state: TrainState, start: int, end: int, bar: tqdm.tqdm
    ) -> tuple[TrainState, dict[str, float]]:
        """Steps `start` to `end`, a dispatch at a time; the means of their metrics."""
        sums = {"loss": 0.0, "accuracy": 0.0}
        pending: tuple[int, int, dict[str, Array]] | None = None
        dispatches = feed.dispatches(
            self.train_data,
            self.source,
            start,
            end,
            most_steps=STEPS_PER_DISPATCH,
            sharding=self.everywhere,
        )
        for dispatch in itertools.chain(dispatches, [None]):
            finished, pending = pending, None
            if dispatch:
                begin, stop, data, order = dispatch
                state, totals = run_steps(state, data, order, stop - begin, program=self.program)
                pending = (begin, stop, totals)
            if finished:
                self._fetch(*finished, sums, bar)
        return state, {name: total / (end - start) for name, total in sums.items()}

    def _fetch(
        self,
        begin: int,
        stop: int,
        totals: dict[str, Array],
        sums: dict[str, float],
        bar: tqdm.tqdm,
    ) -> None:
        """Waits for a dispatch, adds its totals up, and shows them."""
        values = {name: float(total) for name, total in totals.items()}
        for name, value in values.items():
            sums[name] += value
        loss = values["loss"] / (stop - begin)
        self._check_finite(loss, f"the loss is {loss} between steps {begin} and {stop}")
        bar.set_postfix(loss=f"{loss:.4f}", accuracy=f"{values['accuracy'] / (stop - begin):.4f}")
        bar.update(stop - begin)

    def _check_finite(self, loss: float, finding: str) -> None:
        """Stops a run that has diverged, before it is recorded or checkpointed."""
        if not math.isfinite(loss):
            raise DivergedError(
                f"{finding}; lower --optimizer.learning-rate (now"
                f" {self.config.optimizer.learning_rate}) or set --optimizer.clip-norm"
            )

    def _evaluate(self, state: TrainState, step: int, means: dict[str, float]) -> Evaluation:
        """Test set and per-site measurements, at this step."""
        tested = self._test(state)
        test_loss = tested["loss"]
        self._check_finite(test_loss, f"the test loss is {test_loss} after step {step}")
        measured = {}
        if self.config.alignment_examples:
            number = self.config.alignment_examples
            examples = feed.first(self.train_data, number, self.everywhere)
            measured = measure_sites(state, examples, program=self.program)
        found = {name: float(value) for name, value in measured.items()}
        found = {name: value for name, value in found.items() if math.isfinite(value)}
        if self.program.readout and step == self.program.num_steps:
            found |= self._probe(state)
        found["wall_seconds"] = self.elapsed_before + time.perf_counter() - self.started
        return Evaluation(
            step=step,
            epoch=step / self.source.steps_per_epoch,
            train_loss=means["loss"],
            train_accuracy=means["accuracy"],
            test_loss=test_loss,
            test_accuracy=tested["accuracy"],
            metrics=found,
        )

    def _test(self, state: TrainState) -> dict[str, float]:
        """Mean loss and accuracy over the test set; its chunks count by their examples."""
        means = {"loss": 0.0, "accuracy": 0.0}
        for chunk in feed.chunks(self.test_data, self.everywhere):
            found = evaluate(state.params, chunk, state.readout, program=self.program)
            share = len(chunk.targets) / len(self.test_data.targets)
            means = {name: mean + share * float(found[name]) for name, mean in means.items()}
        return means

    def _probe(self, state: TrainState) -> dict[str, float]:
        """Accuracies of a classifier fitted to the features of all training images as they are.

        Of a stream there is none: its features might not fit in memory either.
        """
        train, test, model = self.train_data, self.test_data, self.program.model
        if isinstance(train, Stream) or isinstance(test, Stream):
            return {}
        place = self.config.readout.place
        found = linear_probe(model, state.params, train, test, place=place)
        return {
            "probe_train_accuracy": found.train_accuracy,
            "probe_test_accuracy": found.test_accuracy,
        }

    def _record(self, state: TrainState) -> RunRecord:
        return RunRecord(
            recipe="",
            variant="",
            rule=rule_name(self.config.rule),
            seed=self.config.seed,
            num_params=tree.size(state.params),
            num_steps=self.program.num_steps,
            wall_seconds=self.elapsed_before + time.perf_counter() - self.started,
            config=to_dict(self.config),
            environment=environment(),
            curve=tuple(self.curve),
        )


def seed_keys(config: TrainConfig) -> tuple[PRNGKey, PRNGKey | None]:
    """The run's key, and that of its feedback if it has one of its own."""
    own = config.feedback_seed
    return jax.random.key(config.seed), None if own is None else jax.random.key(own)


@functools.partial(jax.jit, static_argnames="program")
def draw_state(
    key: PRNGKey, feedback_key: PRNGKey | None, batch: Batch, *, program: Program
) -> TrainState:
    """`init_state` on the devices where the state stays; one compilation serves every seed."""
    state = init_state(key, batch, feedback_key=feedback_key, **program.initial_parts)
    return jax.lax.with_sharding_constraint(state, sharding.state_shardings(program.mesh, state))


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def run_steps(
    state: TrainState,
    data: Batch,
    order: Int[Array, "most batch"],
    num_steps: int | Int[Array, ""],
    *,
    program: Program,
) -> tuple[TrainState, dict[str, Array]]:
    """The first `num_steps` rows of `order` as steps; totals of loss and accuracy over them."""
    parts, over_batch = program.parts, sharding.over_batch(program.mesh)

    def one(i, carry):
        state, totals = carry
        batch = jax.tree.map(lambda a: a[order[i]], data)
        batch = jax.lax.with_sharding_constraint(batch, over_batch)
        state, found = train_step(state, batch, **parts)
        return state, tree.add(totals, found)

    totals = {"loss": jnp.zeros(()), "accuracy": jnp.zeros(())}
    state, totals = jax.lax.fori_loop(0, num_steps, one, (state, totals))
    shardings = sharding.state_shardings(program.mesh, state)
    return jax.lax.with_sharding_constraint(state, shardings), totals


@functools.partial(jax.jit, static_argnames="program")
def evaluate(
    params: Params, data: Batch, readout: Params = (), *, program: Program
) -> dict[str, Array]:
    """Mean loss and accuracy over a whole set, of the readout if the program has one."""

    def one(example: Batch) -> dict[str, Array]:
        batch = jax.tree.map(lambda a: a[None], example)
        if program.readout:
            outputs = program.readout.logits(readout, params, batch.inputs)
            loss = softmax_cross_entropy(outputs, batch.targets)
        else:
            outputs = program.model.apply(params, batch.inputs)
            loss = LOSSES[program.loss](outputs, batch.targets)
        right = metrics.correct(outputs, batch.targets)
        return {"loss": loss[0], "accuracy": right[0].astype(jnp.float32)}

    found = jax.lax.map(one, data, batch_size=_EVAL_BATCH)
    return jax.tree.map(jnp.mean, found)


@functools.partial(jax.jit, static_argnames="program")
def measure_sites(state: TrainState, batch: Batch, *, program: Program) -> dict[str, Array]:
    """`metrics.site_metrics` of a state on a batch, or on its views."""
    loss_fn = LOSSES[program.loss]
    key = jax.random.fold_in(state.key, state.step)
    if program.views:
        batch = program.views(key, batch)
    return metrics.site_metrics(
        key, program.model, program.rule, loss_fn, state.params, state.rule_state, batch
    )


def _open_writer(directory: RunDirectory | None) -> Any:
    """TensorBoard's writer as a context manager; one left open fails at the interpreter's exit."""
    if directory is None:
        return contextlib.nullcontext()
    return contextlib.closing(tensorboardX.SummaryWriter(str(directory.tensorboard)))


def _write_scalars(writer: tensorboardX.SummaryWriter, evaluation: Evaluation) -> None:
    numbers: dict[str, float] = dict(evaluation.metrics)
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        numbers[name] = getattr(evaluation, name)
    for name, value in numbers.items():
        writer.add_scalar(name, value, evaluation.step)
    writer.flush()
