"""Results are data: one typed record a run, one JSON line a record."""

import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from dfa_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured after some number of steps.

    Attributes:
        step: optimiser steps so far.
        epoch: passes over the training set so far.
        train_loss: mean loss of the training batches since the last evaluation, nats per example.
        train_accuracy: fraction of them classified correctly.
        test_loss: mean loss on the test set.
        test_accuracy: fraction of the test set classified correctly. In a contrastive run both
            accuracies and the test loss (cross-entropy) are the online readout's.
        metrics: everything else by name: `gradient_alignment/<site>`,
            `gradient_alignment_spread/<site>`, `weight_alignment/<map>`, `activity_norm/<site>`,
            `error_norm/<site>`, `gradient_norm/<site>`, `weight_norm/<path>`; at the end of a
            contrastive run `probe_train_accuracy` and `probe_test_accuracy`. A number that could
            not be measured is absent.
    """

    step: int
    epoch: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    metrics: dict[str, float]


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


def append(path: pathlib.Path, record: Any) -> None:
    """Adds a dataclass instance to a file as one line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drop_unfinished_line(path)
    with path.open("a") as file:
        file.write(json.dumps(dataclasses.asdict(record)) + "\n")


def drop_unfinished_line(path: pathlib.Path) -> None:
    """Cuts off a last line that a stop left without its end, or the next record would join it."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() == b"\n":
                return
            content = path.read_bytes()
            file.truncate(content.rfind(b"\n") + 1)


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


def rewrite(path: pathlib.Path, kept: Sequence[Any]) -> None:
    """Replaces a file's records in one atomic step; without a file there is nothing to do."""
    if path.exists():
        draft = path.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        draft.touch()
        for record in kept:
            append(draft, record)
        draft.replace(path)


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
