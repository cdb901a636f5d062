"""Results are data: one typed record a run, one JSON line a record."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dfa_jax.errors import InputError

_FIELDS = ("loss", "accuracy")  # of an evaluation, by split


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured after some number of steps.

    Attributes:
        step: optimiser steps so far.
        epoch: passes over the training set so far.
        train_loss: mean loss of the training batches since the last evaluation, nats per example.
        train_accuracy: fraction of them classified correctly; None where there are no labels.
        test_loss: mean loss on the test set.
        test_accuracy: fraction of the test set classified correctly. In a contrastive run both
            accuracies and the test loss (cross-entropy) are the online readout's.
        metrics: everything else by name: `train_<name>` and `test_<name>` of the run's own metrics;
            `gradient_alignment/<site>`,
            `gradient_alignment_spread/<site>`, `weight_alignment/<map>`, `activity_norm/<site>`,
            `error_norm/<site>`, `gradient_norm/<site>`, `weight_norm/<path>`; at the end of a
            contrastive run `probe_train_accuracy` and `probe_test_accuracy`. A number that could
            not be measured is absent.
    """

    step: int
    epoch: float
    train_loss: float
    train_accuracy: float | None
    test_loss: float
    test_accuracy: float | None
    metrics: dict[str, float]

    @classmethod
    def of(
        cls,
        step: int,
        epoch: float,
        train: Mapping[str, float],
        test: Mapping[str, float],
        metrics: Mapping[str, float],
    ) -> "Evaluation":
        """A point from what was found by name; a metric that is no number is left out."""
        own = {
            f"{split}_{name}": value
            for split, found in (("train", train), ("test", test))
            for name, value in found.items()
            if name not in _FIELDS and math.isfinite(value)
        }
        return cls(
            step=step,
            epoch=epoch,
            train_loss=train["loss"],
            train_accuracy=train.get("accuracy"),
            test_loss=test["loss"],
            test_accuracy=test.get("accuracy"),
            metrics={**own, **metrics},
        )

    @property
    def scalars(self) -> dict[str, float]:
        """All numbers by name, but for step and epoch."""
        named = {f"{split}_{name}" for split in ("train", "test") for name in _FIELDS}
        own = {name: getattr(self, name) for name in sorted(named)}
        return self.metrics | {name: value for name, value in own.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One training run, from its configuration to its curve.

    Attributes:
        recipe: the recipe it belongs to, or "" for a run of its own.
        variant: the recipe's name for this configuration, e.g. "tanh/direct_feedback_alignment".
        rule: the learning rule's registered name.
        seed: of parameters, feedback and order of examples.
        num_params: trained scalars; 0 in a trial that diverged.
        num_steps: optimiser steps; likewise.
        wall_seconds: duration of the run on the machine that made it, compilation included.
        config: the full configuration, as `train.config.to_dict` writes it.
        environment: commit, library versions, device.
        curve: evaluations in order of step; the last one is the final result. Empty in a trial of a
            learning rate whose loss did not stay finite.
    """

    recipe: str
    variant: str
    rule: str
    seed: int
    num_params: int
    num_steps: int
    wall_seconds: float
    config: dict[str, Any]
    environment: dict[str, str]
    curve: tuple[Evaluation, ...]

    @property
    def final(self) -> Evaluation:
        """The last evaluation."""
        return self.curve[-1]


LOCK_SECONDS = 60.0  # it is held for milliseconds


@dataclasses.dataclass(frozen=True)
class Editor:
    """What may be done to a file of records by who alone may change it: see `edit`.

    A record is a dataclass instance, or a dict of what JSON has. Readers need no lock: they see
    whole lines and, at most, the beginning of one more, which they leave out.
    """

    path: pathlib.Path

    def append(self, record: Any) -> None:
        """Adds a record as one line, in one write."""
        self._drop_unfinished_line()
        left = _line(record).encode()
        with self.path.open("ab", buffering=0) as file:
            while left:  # what a full disk takes, and then its error
                left = left[file.write(left) :]

    def replace(self, kept: Iterable[Any]) -> None:
        """Puts other records into the file, in one atomic step."""
        self._replace("".join(map(_line, kept)).encode())

    def _drop_unfinished_line(self) -> None:
        """Leaves out a last line that a stop left without its end, or the next would join it."""
        if not self.path.exists() or not self.path.stat().st_size:
            return
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() == b"\n":
                return
        # Not cut off: a reader in the middle of it would go on in another line.
        content = self.path.read_bytes()
        self._replace(content[: content.rfind(b"\n") + 1])

    def _replace(self, content: bytes) -> None:
        draft = self.path.with_suffix(".draft")
        draft.write_bytes(content)
        draft.replace(self.path)


@contextlib.contextmanager
def edit(path: pathlib.Path) -> Iterator[Editor]:
    """Inside of the block, no other process changes the file: what is read there stays so.

    The lock is on a file of its own beside it, as the records' own is replaced, and the system lets
    go of it when the process dies. On a file system without locks, nothing watches.

    Raises:
        InputError: another process does not let go of it.
    """
    import filelock  # of an extra

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        with contextlib.suppress(NotImplementedError):
            lock.acquire(timeout=LOCK_SECONDS, poll_interval=0.002)
    except filelock.Timeout as error:
        raise InputError(
            f"{path} has been in the hands of another process for {LOCK_SECONDS:.0f} s; end that"
            f" one, or delete {lock.lock_file} if its machine is gone, and give the same command"
            " again"
        ) from error
    try:
        yield Editor(path)
    finally:
        lock.release()


def append(path: pathlib.Path, record: Any) -> None:
    """Adds a record to a file as one line of JSON; any number of processes may at once."""
    with edit(path) as file:
        file.append(record)


def _line(record: Any) -> str:
    return json.dumps(record if isinstance(record, dict) else dataclasses.asdict(record)) + "\n"


def read_runs(path: pathlib.Path) -> list[RunRecord]:
    """All runs of a file, in order; none if there is no file.

    Raises:
        InputError: a line is not a run record; a last line that a stop cut short is left out.
    """
    return read_lines(path, parse_run)


def parse_run(fields: Any) -> RunRecord:
    """A run from its fields, as JSON has them."""
    return RunRecord(**fields | {"curve": tuple(Evaluation(**one) for one in fields["curve"])})


def read_lines(path: pathlib.Path, parse: Callable[[Any], Any]) -> list[Any]:
    """Every whole line of a file, parsed; none if there is no file.

    Raises:
        InputError: a line is not JSON, or `parse` does not accept its fields.
    """
    if not path.exists():
        return []
    *lines, unfinished = path.read_text(errors="replace").split("\n")
    del unfinished  # "" after a whole last line
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(parse(json.loads(line)))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number} is not a run record ({error}); mend or delete that line"
            ) from error
    return found


@functools.cache
def environment() -> dict[str, str]:
    """Commit, library versions and platform, for a record."""
    import jax

    versions = {
        name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "numpy")
    }
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        **versions,
    }


def _commit() -> str:
    """The checkout's commit, with `+` if its code differs from it; "" outside a checkout."""
    root = pathlib.Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    if pathlib.Path(git("rev-parse", "--show-toplevel") or "/nonexistent") != root:
        return ""
    return git("rev-parse", "--short=12", "HEAD") + (
        "+" if git("status", "--porcelain", "-uno", "--", ":/", ":(exclude)results") else ""
    )
