"""The loop: it schedules steps, evaluations and checkpoints, and computes nothing itself.

Many steps run in one dispatch, on data that is already on the device; while they run, the numbers
of the dispatch before are fetched and shown, and of a stream, the examples of the next are read.
Runs that differ in their seed or learning rate alone can take their steps together.
"""

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np
import tqdm
from jaxtyping import Array

from dfa_jax.data import EpochShuffle, Stream, feed
from dfa_jax.data.base import check_labels
from dfa_jax.errors import InputError
from dfa_jax.train import config as configs
from dfa_jax.train.compiled import draw_state as draw_state
from dfa_jax.train.compiled import evaluate as evaluate
from dfa_jax.train.compiled import run_steps, run_steps_together
from dfa_jax.train.config import TrainConfig, rule_name
from dfa_jax.train.program import Program as Program
from dfa_jax.train.program import make_program
from dfa_jax.train.run import STEPS_PER_DISPATCH, Data, Files, Result, Run
from dfa_jax.types import Batch

_Totals = Sequence[dict[str, Array]]


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
    directories = None if run_dir is None else [run_dir]
    (result,) = fit_together(
        [config], run_dirs=directories, resume=resume, overwrite=overwrite, progress=progress
    )
    return result


def fit_together(
    members: Sequence[TrainConfig],
    *,
    run_dirs: Sequence[pathlib.Path] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> list[Result]:
    """Trains several runs that differ in seed and learning rate alone, all at once.

    Their steps are one program under `jax.vmap`, which fills an accelerator that one small network
    would leave idle. Each run has a directory and records of its own, as if it had run alone, up to
    rounding; if all were stopped, all go on from the last step of which everyone has a checkpoint.

    Args:
        members: the runs.
        run_dirs: one each.
        resume: as in `fit`.
        overwrite: as in `fit`.
        progress: as in `fit`.

    Raises:
        InputError: as in `fit`, or the runs differ in something else.
    """
    config = _common(members)
    dataset = config.data.load()
    check_labels(dataset)
    if not np.issubdtype(dataset.train.targets.dtype, np.integer):
        raise InputError(
            f"data set '{dataset.name}' has no classes, and a run reports accuracy; train it with"
            " train.ensemble.fit_ensemble, or choose a set with labels"
        )
    source = EpochShuffle(len(dataset.train.targets), config.batch_size, config.seed)
    program = make_program(config, dataset, config.num_steps(source.steps_per_epoch))
    data = Data.placed(dataset, program)
    if len(members) > 1 and isinstance(data.train, Stream):
        raise InputError(
            f"data set '{dataset.name}' is streamed, and runs that train together need it in"
            " memory; train them one by one"
        )
    with contextlib.ExitStack() as stack:
        files = [
            Files.open(stack, pathlib.Path(path), member, resume=resume, overwrite=overwrite)
            for path, member in zip(run_dirs or (), members, strict=bool(run_dirs))
        ]
        runs = [
            Run(member, program, data, own) for member, own in itertools.zip_longest(members, files)
        ]
        return _train(runs, progress)


def _common(members: Sequence[TrainConfig]) -> TrainConfig:
    """The first configuration, after checking that the others share all that must be shared."""
    if not members:
        raise InputError("no runs to train; give at least one configuration")
    first = members[0]
    for member in members[1:]:
        if found := differences(first, member):
            raise InputError(
                f"runs that train together differ in {found[0]}; expected other seeds and learning"
                " rates alone"
            )
    return first


def differences(first: TrainConfig, second: TrainConfig) -> list[str]:
    """The settings, besides seed and learning rate, in which two runs differ."""
    rate = first.optimizer.learning_rate
    optimizer = dataclasses.replace(second.optimizer, learning_rate=rate)
    same = dataclasses.replace(second, seed=first.seed, optimizer=optimizer)
    return configs.changes(configs.to_dict(first), same)


def _train(runs: Sequence[Run], progress: bool) -> list[Result]:
    """From the start, or the last step that everyone has a checkpoint of, to the end."""
    step = min(run.latest for run in runs)
    for run in runs:
        run.start(step)
    program = runs[0].program
    with tqdm.tqdm(
        total=program.num_steps,
        initial=step,
        unit="step",
        desc=rule_name(program.rule),
        disable=not progress,
    ) as bar:
        for end in (end for end in runs[0].ends if end > step):
            means = _advance(runs, step, end, bar)
            for run, own in zip(runs, means, strict=True):
                run.record_point(end, own)
            step = end
    return [run.finish() for run in runs]


def _advance(runs: Sequence[Run], start: int, end: int, bar: tqdm.tqdm) -> list[dict[str, float]]:
    """Steps `start` to `end`, a dispatch at a time; the means of their metrics, run by run."""
    sums = [{"loss": 0.0, "accuracy": 0.0} for _ in runs]
    pending: tuple[int, int, _Totals] | None = None
    first = runs[0]
    dispatches = feed.dispatches(
        first.data.train,
        first.source,
        start,
        end,
        most_steps=STEPS_PER_DISPATCH,
        sharding=first.everywhere,
    )
    for dispatch in itertools.chain(dispatches, [None]):
        finished, pending = pending, None
        if dispatch:
            pending = (*dispatch[:2], _dispatch(runs, *dispatch))
        if finished:
            _fetch(runs, *finished, sums, bar)
    return [{name: total / (end - start) for name, total in own.items()} for own in sums]


def _dispatch(
    runs: Sequence[Run], begin: int, stop: int, data: Batch, order: np.ndarray
) -> _Totals:
    """Lets all runs take these steps; `order` is that of the first one."""
    program, number = runs[0].program, stop - begin
    if len(runs) == 1:
        (run,) = runs
        # ones: a branch that decays the rate is then the same program with other factors
        whole = np.ones(len(order), np.float32)
        run.state, totals = run_steps(run.state, data, order, number, whole, program=program)
        return [totals]
    orders = np.zeros((len(order), len(runs), order.shape[1]), np.int32)
    orders[:number] = np.stack([run.source.indices(begin, number) for run in runs], 1)
    rates = np.array([run.config.optimizer.learning_rate for run in runs])
    factors = (rates / program.optimizer.learning_rate).astype(np.float32)
    states = tuple(run.state for run in runs)
    states, totals = run_steps_together(states, data, orders, number, factors, program=program)
    for run, state in zip(runs, states, strict=True):
        run.state = state
    return totals


def _fetch(
    runs: Sequence[Run],
    begin: int,
    stop: int,
    totals: _Totals,
    sums: list[dict[str, float]],
    bar: tqdm.tqdm,
) -> None:
    """Waits for a dispatch, adds its totals up, and shows their means."""
    number = stop - begin
    for run, found, own in zip(runs, totals, sums, strict=True):
        for name, total in found.items():
            own[name] += float(total)
        loss = float(found["loss"]) / number
        run.check_finite(loss, f"the loss is {loss} between steps {begin} and {stop}")
    shown = {
        name: sum(float(found[name]) for found in totals) / (number * len(runs))
        for name in ("loss", "accuracy")
    }
    bar.set_postfix({name: f"{value:.4f}" for name, value in shown.items()})
    bar.update(number)
