"""A recipe's results as files: `records.jsonl`, `table.md`, `figure.png` and `index.html`."""

import os
import pathlib
import sys
from typing import Any

from dfa_jax.errors import InputError, require
from dfa_jax.report import catalogue, figure, page, plan, study, study_page, style, table, tuning
from dfa_jax.report import run as training
from dfa_jax.report.plan import RECORDS as RECORDS
from dfa_jax.report.recipe import Recipe
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.study import Study
from dfa_jax.train import records

Published = Recipe | Study | RunStudy


def run(
    chosen: Published,
    results_dir: pathlib.Path,
    *,
    data_dir: pathlib.Path | None = None,
    overwrite: bool = False,
) -> None:
    """Makes what the records lack; a stop loses at most the run, or the case, in progress.

    On a terminal training shows a bar. If the records lack nothing, a line says so.
    """
    require("report", "the figure of a recipe", "matplotlib")  # before hours of work
    path = results_dir / chosen.source / RECORDS
    if progress(chosen, results_dir) == "complete":
        print(
            f"nothing to run: '{chosen.name}' is on record in {path.parent}; --results-dir FOLDER"
            " makes it anew, in another folder"
        )
    if isinstance(chosen, Study):
        if data_dir:  # a case finds its data by itself, where the environment says
            os.environ["TFDS_DATA_DIR"] = str(data_dir)
        study.run(chosen, path, overwrite=overwrite)
    else:
        recipe = chosen.recipe if isinstance(chosen, RunStudy) else chosen
        on_terminal = sys.stderr.isatty()
        training.run(recipe, path, data_dir=data_dir, overwrite=overwrite, progress=on_terminal)


def publish(chosen: Published, results_dir: pathlib.Path) -> str:
    """Writes table, figure and page from the recipe's records.

    Returns:
        The table, and where figure and page are.

    Raises:
        InputError: there are no records yet, or some were made with another configuration.
    """
    held, folder = held_runs(chosen, results_dir), results_dir / chosen.name
    if not held:
        raise InputError(
            f"no runs of '{chosen.name}' in {results_dir / chosen.source}; leave out --report-only"
            " to make them"
        )
    if isinstance(chosen, Study | RunStudy):
        found = study_page.findings(chosen, held)
        images = {theme: study_page.figure(chosen, held, theme) for theme in style.THEMES}
        shown = study_page.markdown(chosen, found)
        content = study_page.html(chosen, held, found, images)
    else:
        images = {theme: figure.draw(chosen.figure, held, theme) for theme in style.THEMES}
        shown, content = table.markdown(chosen, held), page.html(chosen, held, images)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(shown)
    (folder / "figure.png").write_bytes(images["light"])
    (folder / "index.html").write_text(content)
    return f"{shown}\nFigure: {folder / 'figure.png'}\nPage: {folder / 'index.html'}"


def held_runs(chosen: Published, results_dir: pathlib.Path) -> list[Any]:
    """The recorded runs, or cases, that belong to a recipe.

    Raises:
        InputError: some were made with another configuration.
    """
    folder = results_dir / chosen.source
    if isinstance(chosen, Study):
        return study.matching(chosen, study.read(folder / RECORDS))
    recipe = chosen.recipe if isinstance(chosen, RunStudy) else chosen
    if recipe.tuning:
        recipe = tuning.settled(recipe, tuning.read(recipe, folder))
    return plan.matching(recipe, records.read_runs(folder / RECORDS))


def listing(results_dir: pathlib.Path) -> str:
    """Every recipe: its paper, its time, and whether its results are in."""
    found = [catalogue.load(name) for name in catalogue.names()]
    lines = [
        (one.name, f"{one.minutes:g} min", progress(one, results_dir), one.paper) for one in found
    ]
    header = ("recipe", "2 cores", "results", "paper")
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (header, *lines)
    )


def progress(chosen: Published, results_dir: pathlib.Path) -> str:
    """`complete`, `k of n runs` or cases, `none`, or `outdated`: of another configuration."""
    try:
        held = held_runs(chosen, results_dir)
    except InputError:
        return "outdated"
    if isinstance(chosen, Study):
        done, needed, unit = len(held), len(chosen.needed), "cases"
    else:
        recipe = chosen.recipe if isinstance(chosen, RunStudy) else chosen
        needed, unit = len(plan.plan(recipe)), "runs"
        done = needed - len(plan.missing(recipe, held))
    if done == needed:
        return "complete"
    return f"{done} of {needed} {unit}" if done else "none"
