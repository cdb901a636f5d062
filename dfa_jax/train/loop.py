"""The loop: it schedules steps, evaluations and checkpoints, and computes nothing itself.

Many steps run in one dispatch, on data that is already on the device; while they run, the numbers
of the dispatch before are fetched and shown, and of a stream, the examples of the next are read.
Runs that differ in their seed or learning rate alone can take their steps together.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Array

from dfa_jax.data import EpochShuffle, Stream, feed, num_examples
from dfa_jax.data.base import check_labels
from dfa_jax.errors import InputError, require
from dfa_jax.optim import Optimizer
from dfa_jax.train import config as configs
from dfa_jax.train import hosts, interrupt, sharding
from dfa_jax.train.checkpoint import DamagedError
from dfa_jax.train.compiled import draw_state as draw_state
from dfa_jax.train.compiled import run_steps, run_steps_together
from dfa_jax.train.config import TrainConfig, rule_name
from dfa_jax.train.evaluation import evaluate as evaluate
from dfa_jax.train.interrupt import Interrupted
from dfa_jax.train.program import Program as Program
from dfa_jax.train.program import make_program
from dfa_jax.train.run import STEPS_PER_DISPATCH, Data, Files, Result, Run
from dfa_jax.types import Batch

if TYPE_CHECKING:
    import tqdm

    Bar = tqdm.tqdm
else:
    Bar = Any  # of an extra

_Noted = Sequence[dict[str, Array]]


class _Pending(NamedTuple):
    """A dispatch under way: its steps, what they will have found, and what was asked meanwhile."""

    begin: int
    stop: int
    noted: _Noted
    asked: Any


SECONDS_BETWEEN_CHECKPOINTS = 600.0
"""A run that is not evaluated for so long is saved all the same."""


def fit(
    config: TrainConfig,
    *,
    run_dir: pathlib.Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    save_seconds: float = 0.0,
    progress: bool | Bar = True,
) -> Result:
    """Trains a model by a learning rule.

    Args:
        config: the run.
        run_dir: where configuration, curve, checkpoints and TensorBoard files go; nothing is
            written without it.
        resume: go on with the run in `run_dir` (or start it, if there is none).
        overwrite: replace the run in `run_dir`, once the new one has been evaluated; until then it
            is set aside, and comes back if the new one fails, is stopped or is killed.
        save_seconds: a checkpoint at an evaluation costs a tenth of a second; leave it out where
            the last one is not so old.
        progress: show a bar with loss, accuracy, steps/s and the time left; or the bar of several
            runs, which this one moves on.

    Raises:
        InputError: the configuration cannot be run here (before any work), `run_dir` is taken or
            damaged beyond its checkpoints, cannot be written to any more, or the loss is no longer
            finite.
        Interrupted: the process was asked to stop (`train.interrupt`); the state is saved, unless
            the run is to replace one that `overwrite` has set aside.

    >>> from dfa_jax.data import ImageData
    >>> few = TrainConfig(data=ImageData(num_train=256), batch_size=64, num_epochs=1)
    >>> fit(few, progress=False).record.num_steps
    4
    """
    directories = None if run_dir is None else [run_dir]
    (result,) = fit_together(
        [config],
        run_dirs=directories,
        resume=resume,
        overwrite=overwrite,
        save_seconds=save_seconds,
        progress=progress,
    )
    return result


def fit_together(
    members: Sequence[TrainConfig],
    *,
    run_dirs: Sequence[pathlib.Path] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    save_seconds: float = 0.0,
    progress: bool | Bar = True,
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
        save_seconds: as in `fit`.
        progress: as in `fit`.

    Raises:
        InputError: as in `fit`, or the runs differ in something else.
    """
    require("train", "a run", "filelock", "sklearn", "tensorboardX", "tqdm")
    config = _common(members)
    hosts.agree(config)
    dataset = config.data.load()
    if isinstance(config.loss, str):  # another loss may read what it likes
        check_labels(dataset)
    source = EpochShuffle(num_examples(dataset.train), config.batch_size, config.seed)
    program = make_program(config, dataset, config.num_steps(source.steps_per_epoch))
    if len(members) > 1 and isinstance(dataset.train, Stream):
        raise InputError(
            f"data set '{dataset.name}' is streamed, and runs that train together need it in"
            " memory; train them one by one"
        )
    how = {"resume": resume, "overwrite": overwrite, "save_seconds": save_seconds}
    with contextlib.ExitStack() as stack:
        stack.enter_context(sharding.in_force(program.mesh))
        data = Data.placed(dataset, program)
        runs = [Run(member, program, data) for member in members]
        runs[0].abstract_state()  # what is refused is so before any file is touched
        for run, path in zip(runs, run_dirs or (), strict=bool(run_dirs)):
            run.write_to(Files.open(stack, pathlib.Path(path), run.config, **how))
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
    same = dataclasses.replace(second, seed=first.seed)
    if isinstance(first.optimizer, Optimizer) and isinstance(second.optimizer, Optimizer):
        rate = first.optimizer.learning_rate
        optimizer = dataclasses.replace(second.optimizer, learning_rate=rate)
        same = dataclasses.replace(same, optimizer=optimizer)
    found = configs.changes(configs.to_dict(first), same)
    # Two functions of one name are not told apart by what is written of them.
    names = ("optimizer", "loss", "metrics", "calling")
    return found or [
        f"{name}: another function of the same name"
        for name in names
        if getattr(first, name) != getattr(same, name)
    ]


def _train(runs: Sequence[Run], progress: bool | Bar) -> list[Result]:
    """From the start, or the last step that everyone has a checkpoint of, to the end."""
    step = _begin(runs)
    program = runs[0].program
    pace = Pace(STEPS_PER_DISPATCH)
    with _bar(program, step, progress) as bar:
        for end in (end for end in runs[0].ends if end > runs[0].since):
            _advance(runs, step, end, pace, bar)
            try:
                for run in runs:
                    run.record_point(end)
            except Interrupted:
                _stop(runs)
            for run in runs:
                run.drop_old()
            step = end
    return [run.finish() for run in runs]


def _bar(
    program: Program, step: int, progress: bool | Bar
) -> contextlib.AbstractContextManager[Bar]:
    """A bar of these runs, or the one that is given, which stays open; it stands at the step."""
    import tqdm

    if isinstance(progress, tqdm.tqdm):
        if not progress.disable:
            progress.initial += step  # no steps of this process, whose pace is shown
            progress.update(step)
        return contextlib.nullcontext(progress)
    return tqdm.tqdm(
        total=program.num_steps,
        initial=step,
        unit="step",
        desc=rule_name(program.rule),
        disable=not (progress and hosts.is_first()),
    )


def _begin(runs: Sequence[Run]) -> int:
    """Brings all runs to the newest step of which everyone has a whole checkpoint.

    A damaged one is named and set aside, and the one before it taken. A run of which none is left
    does not silently start again.
    """
    said = []
    while shared := set.intersection(*(set(run.kept) for run in runs)):
        step = max(shared)
        for run in runs:
            try:
                run.restore(step)
            except DamagedError as error:
                assert run.files
                aside = run.files.checkpoints.set_aside(step)
                said.append(f"{error}; moved to {aside}")
                break
        else:
            for line in said if hosts.is_first() else ():
                print(line, file=sys.stderr)
            return step
    if said:
        raise InputError(f"{said[-1]}; no other is left: start again with --overwrite")
    if apart := [run.kept for run in runs if len(run.kept) > 1]:
        raise InputError(
            f"there is no step of which all {len(runs)} runs have a checkpoint (one has those of"
            f" steps {apart[0]}); go on with each alone, or start again with --overwrite"
        )
    for run in runs:
        run.start()
    return 0


class Pace:
    """How many steps to dispatch at once, so that a stop never waits long for them.

    It starts at one and doubles while a dispatch takes less than half of a second, up to `most`;
    one that takes more than two seconds is halved.
    """

    def __init__(self, most: int):
        self.most, self.steps = most, 1

    def took(self, seconds: float) -> None:
        """Learns from a dispatch."""
        if seconds < 0.5:
            self.steps = min(2 * self.steps, self.most)
        elif seconds > 2:
            self.steps = max(self.steps // 2, 1)


def _advance(runs: Sequence[Run], start: int, end: int, pace: Pace, bar: Bar) -> None:
    """Steps `start` to `end`, a dispatch at a time.

    Raises:
        Interrupted: the process was asked to stop; the state is saved.
    """
    pending: _Pending | None = None
    first = runs[0]
    dispatches = feed.dispatches(
        first.data.train,
        first.source,
        start,
        end,
        most_steps=STEPS_PER_DISPATCH,
        pace=lambda: pace.steps,
        sharding=sharding.over_steps(first.program.mesh),
    )
    clock, seconds = time.perf_counter(), 0.0
    for dispatch in itertools.chain(dispatches, [None]):
        finished, pending = pending, None
        if dispatch:
            begin, stop, data, order = dispatch
            noted = _dispatch(runs, begin, stop, data, order)
            pending = _Pending(begin, stop, noted, _asked(first, seconds))
        if not finished:
            continue
        is_asked, is_due, slowest = _fetch(runs, finished, bar)
        pace.took(slowest)
        clock, before = time.perf_counter(), clock
        seconds = clock - before
        if pending and (is_asked or is_due):
            _fetch(runs, pending, bar)
            pending = None
            for run in () if is_asked else runs:
                run.save()
        if is_asked:
            _stop(runs)


def _asked(run: Run, seconds: float) -> Array | np.ndarray:
    """Whether to stop, whether a checkpoint is due, and the last dispatch's time, for all alike.

    Processes that decided by themselves would take different steps.
    """
    is_due = bool(run.files) and time.perf_counter() - run.saved > SECONDS_BETWEEN_CHECKPOINTS
    return hosts.most(run.program.mesh, interrupt.requested(), is_due, seconds)


def _stop(runs: Sequence[Run]) -> NoReturn:
    """Saves what is not saved yet; of a run that is to replace another, once it is evaluated."""
    step, last = int(runs[0].state.step), runs[0].program.num_steps
    for run in runs:
        if not run.replaces:
            run.save()
    said = f"stopped after step {step} of {last}"
    if any(run.replaces for run in runs):
        raise Interrupted(
            f"{said}, before the first evaluation: the run that was there is kept",
            "the same command begins again",
        )
    raise Interrupted(
        f"{said}; " + ("the state is saved" if runs[0].files else "nothing was kept of this run")
    )


def _dispatch(
    runs: Sequence[Run], begin: int, stop: int, data: Batch, order: np.ndarray | None
) -> _Noted:
    """Lets all runs take these steps; `order` is that of the first one."""
    program, number = runs[0].program, stop - begin
    if len(runs) == 1:
        (run,) = runs
        # ones: a branch that decays the rate is then the same program with other factors
        whole = np.ones(num_examples(data) if order is None else len(order), np.float32)
        run.state, noted = run_steps(run.state, data, order, number, whole, program=program)
        return [noted]
    assert order is not None  # streams were refused
    orders = np.zeros((len(order), len(runs), order.shape[1]), np.int32)
    orders[:number] = np.stack([run.source.indices(begin, number) for run in runs], 1)
    factors = np.ones(len(runs), np.float32)
    if isinstance(program.optimizer, Optimizer):
        rates = np.array([run.config.optimizer.learning_rate for run in runs])
        factors = (rates / program.optimizer.learning_rate).astype(np.float32)
    states = tuple(run.state for run in runs)
    states, noted = run_steps_together(states, data, orders, number, factors, program=program)
    for run, state in zip(runs, states, strict=True):
        run.state = state
    return noted


def _fetch(runs: Sequence[Run], pending: "_Pending", bar: Bar) -> list[float]:
    """Waits for a dispatch, has its metrics noted, and shows their means; what was asked."""
    begin, stop, noted, asked = pending
    for run, found in zip(runs, noted, strict=True):
        run.note(begin, stop, found)
    shown = {
        name: np.mean([np.asarray(found[name])[: stop - begin] for found in noted])
        for name in runs[0].program.metric_names
    }
    bar.set_postfix({name: f"{value:.4f}" for name, value in shown.items()})
    bar.update(stop - begin)
    return np.asarray(asked).tolist()
