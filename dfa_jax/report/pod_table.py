"""Compile reports on record: one JSON line a variant and slice, and the table made of them."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from dfa_jax.report import table
from dfa_jax.report.pod import PodReport, Traffic
from dfa_jax.train import records

HEADINGS = (
    "recipe, variant",
    "with",
    "slice",
    "mesh",
    "fits",
    "GB a device",
    "of them state",
    "FLOPs a device",
    "operations between devices, received a device",
)
CAPTION = (
    "Compiled ahead of time, and not run: the train step of one variant for a TPU slice. GB: at the"
    " worst moment, and of parameters, moments and feedback. FLOPs: of the step's matrix products,"
    " from the structure, over the devices; a rematerialised forward pass counts. Operations"
    " between devices: in one step, loops' turns counted. What the devices of a layer axis all"
    " compute, the forward pass, counts once."
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compile report.

    Attributes:
        recipe: whose.
        variant: of it.
        changes: options in place of the recipe's own, as on the command line.
        report: what came out.
        environment: commit, library versions.
    """

    recipe: str
    variant: str
    changes: str
    report: PodReport
    environment: dict[str, str]

    @property
    def key(self) -> tuple[str, ...]:
        """What it is a report of."""
        return self.recipe, self.variant, self.changes, self.report.topology


def parse(fields: Any) -> Compiled:
    """A report from its fields, as JSON has them."""
    report = PodReport(*fields["report"])
    traffic = {kind: Traffic(*one) for kind, one in report.traffic.items()}
    return Compiled(**fields | {"report": report._replace(traffic=traffic)})


def keep(path: pathlib.Path, report: Compiled) -> list[Compiled]:
    """Puts the report in the file, in place of one of the same; all that are in it then."""
    with records.edit(path) as file:
        others = [one for one in records.read_lines(path, parse) if one.key != report.key]
        file.replace([*others, report])
    return [*others, report]


def markdown(reports: Sequence[Compiled]) -> str:
    """The table."""
    lines = [cells(one) for one in sorted(reports, key=lambda one: (one.recipe, one.changes))]
    return f"{table.lines([HEADINGS, *lines])}\n\n{CAPTION}\n"


def cells(one: Compiled) -> tuple[str, ...]:
    """A row."""
    report = one.report
    traffic = ", ".join(
        f"{found.number} {kind} ({found.bytes / 1e6:,.0f} MB)"
        for kind, found in report.traffic.items()
    )
    return (
        f"{one.recipe.rpartition('/')[2]}, {one.variant}",
        one.changes,
        report.topology,
        report.axes,
        "yes" if report.fits else "**no**",
        f"{report.peak_bytes / 1e9:.2f} of {report.chip_bytes / 1e9:.0f}",
        f"{report.state_bytes / 1e9:.2f}",
        f"{report.flops_a_device:.3g}",
        traffic or "none",
    )
