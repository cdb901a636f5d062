"""A study: a recipe whose cases are computations of their own, not single training runs.

A `Recipe` compares learning rules by test error. A `Study` is anything else that a paper shows: its
cases (solutions of equations, ensembles of networks) give arrays, which it draws and judges.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dfa_jax.errors import InputError, select
from dfa_jax.report.finding import Finding
from dfa_jax.report.panel import Figure
from dfa_jax.report.style import Theme
from dfa_jax.report.text import duration
from dfa_jax.train import records
from dfa_jax.train.config import changes, to_dict

Arrays = Mapping[str, np.ndarray]
"""What a case gives, by name."""

Results = Mapping[str, Arrays]
"""What the cases give, by label."""

DIGITS = 6  # significant ones in the records


@runtime_checkable
class Case(Protocol):
    """A frozen dataclass that says what to compute; its fields are its record."""

    def run(self) -> Mapping[str, Any]:
        """Computes; arrays or nested lists by name."""
        ...

    def shrunk(self) -> "Case":
        """The same in a few seconds, for tests."""
        ...


@dataclasses.dataclass(frozen=True)
class Study:
    """What to compute, how to draw it, and what it should show.

    Attributes:
        title: one line.
        paper: its citation.
        minutes: duration of all cases, measured on two cores.
        cases: by label.
        draw: makes the figure in the shape that the paper has, from the cases that are in.
        findings: compares what came with what was expected; needs all cases.
        shares: another study whose cases and records these are; "" for its own.
        name: path under `configs/` without the suffix; `catalogue.load` sets it.
        header: the file's docstring; `catalogue.load` sets it.
    """

    title: str
    paper: str
    minutes: float
    cases: Mapping[str, Case]
    draw: Callable[[Results, Theme], Figure]
    findings: Callable[[Results], Sequence[Finding]]
    shares: str = ""
    name: str = ""
    header: str = ""

    @property
    def source(self) -> str:
        """The folder under `results/` whose records it reads."""
        return self.shares or self.name

    @property
    def needed(self) -> list[str]:
        """All cases, by label."""
        return list(self.cases)

    def results(self, held: "Sequence[CaseRecord]") -> Results:
        """What `draw` and `findings` get: the recorded arrays by case."""
        return {
            record.case: {name: np.array(values, float) for name, values in record.results.items()}
            for record in held
        }

    @staticmethod
    def label(record: "CaseRecord") -> str:
        """Which case it is."""
        return record.case

    def only(self, pattern: str) -> "Study":
        """The study with those cases alone whose labels match a glob pattern.

        Raises:
            InputError: there are none.
        """
        kept = select("case", pattern, self.cases)
        return dataclasses.replace(self, cases={label: self.cases[label] for label in kept})

    def with_seeds(self, number: int) -> "Study":
        """Refused: a study's seeds are in its cases.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"--seeds {number}: the seeds of '{self.name}' are part of its cases; change them in"
            f" configs/{self.name}.py"
        )

    def shrink(self) -> "Study":
        """The study with all of its cases made small."""
        cases = {label: case.shrunk() for label, case in self.cases.items()}
        return dataclasses.replace(self, cases=cases)


@dataclasses.dataclass(frozen=True)
class CaseRecord:
    """One case that was computed.

    Attributes:
        recipe: the study that it was computed for.
        case: its label.
        config: its fields, as `train.config.to_dict` writes them.
        wall_seconds: duration on the machine that made it, compilation included.
        environment: commit, library versions, device.
        results: nested lists by name.
    """

    recipe: str
    case: str
    config: dict[str, Any]
    wall_seconds: float
    environment: dict[str, str]
    results: dict[str, Any]


def run(
    study: Study,
    path: pathlib.Path,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Computes the cases that `path` does not hold yet; a stop loses at most the one in progress.

    Of several processes at once, each computes what none has put on record when it comes to it.

    Raises:
        InputError: a recorded case has another configuration and `overwrite` is not set.
    """
    if overwrite:
        drop_outdated(study, path)
    for label in study.cases:
        done = {record.case for record in matching(study, read(path))}
        if label in done:
            continue
        started = time.perf_counter()
        found = study.cases[label].run()
        record = CaseRecord(
            recipe=study.source,
            case=label,
            config=to_dict(study.cases[label]),
            wall_seconds=time.perf_counter() - started,
            environment=records.environment(),
            results={name: rounded(values) for name, values in found.items()},
        )
        keep(study, path, record)
        number = len(done | {label})
        say(f"[{number}/{len(study.cases)}] {label}: {duration(record.wall_seconds)}")


def drop_outdated(study: Study, path: pathlib.Path) -> None:
    """Rewrites the records without those of another configuration."""
    with records.edit(path) as file:
        held = read(path)
        kept = [record for record in held if not _changed(study, record)]
        if len(kept) < len(held):
            file.replace(kept)


def keep(study: Study, path: pathlib.Path, record: CaseRecord) -> None:
    """Puts a case on record, unless another process has by now."""
    with records.edit(path) as file:
        others = (one for one in read(path) if one.case == record.case)
        if all(_changed(study, one) for one in others):
            file.append(record)


def read(path: pathlib.Path) -> list[CaseRecord]:
    """All cases of a file, in order; none if there is no file.

    Raises:
        InputError: a line is not a case's record; a last line that a stop cut short is left out.
    """
    return records.read_lines(path, lambda fields: CaseRecord(**fields))


def matching(study: Study, held: Sequence[CaseRecord]) -> list[CaseRecord]:
    """The last record of each case that is in, in the study's order.

    Raises:
        InputError: a case was computed with another configuration.
    """
    for record in held:
        if found := _changed(study, record):
            raise InputError(
                f"the recorded case '{record.case}' of '{study.source}' has another configuration"
                f" ({'; '.join(found[:4])}); --overwrite replaces it"
            )
    last = {record.case: record for record in held}
    return [last[label] for label in study.cases if label in last]


def _changed(study: Study, record: CaseRecord) -> list[str]:
    """The settings in which a recorded case differs from the study's."""
    if record.case not in study.cases:
        return []
    return changes(record.config, study.cases[record.case])


def rounded(values: Any) -> Any:
    """Nested lists of numbers with `DIGITS` significant digits; what is not finite is None.

    >>> rounded(np.array([1 / 3, np.nan]))
    [0.333333, None]
    """
    array = np.asarray(values)
    if array.ndim:
        return [rounded(part) for part in array]
    if array.dtype.kind in "iub":
        return int(array)
    return float(f"{float(array):.{DIGITS}g}") if np.isfinite(array) else None
