"""A recipe's results as files: `records.jsonl`, `table.md`, `figure.png` and `index.html`."""

import pathlib

from dfa_jax.errors import InputError
from dfa_jax.report import figure, page, plan, recipe, table
from dfa_jax.report.recipe import Recipe
from dfa_jax.train import records

RECORDS = "records.jsonl"


def publish(chosen: Recipe, folder: pathlib.Path) -> str:
    """Writes table, figure and page from the folder's records.

    Returns:
        The table, and where the page is.

    Raises:
        InputError: there are no records yet, or some were made with another configuration.
    """
    held = plan.matching(chosen, records.read_runs(folder / RECORDS))
    if not held:
        raise InputError(
            f"no runs of '{chosen.name}' in {folder}; leave out --report-only to make them"
        )
    shown = table.markdown(chosen, table.rows(chosen, held))
    (folder / "table.md").write_text(shown)
    (folder / "figure.png").write_bytes(figure.draw(chosen.figure, held))
    (folder / "index.html").write_text(page.html(chosen, held))
    return f"{shown}\nPage: {folder / 'index.html'}"


def listing(results_dir: pathlib.Path) -> str:
    """Every recipe: its paper, its time, and whether its results are in."""
    found = [recipe.load(name) for name in recipe.names()]
    lines = [
        (one.name, f"{one.minutes:g} min", progress(one, results_dir), one.paper) for one in found
    ]
    header = ("recipe", "2 cores", "results", "paper")
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (header, *lines)
    )


def progress(chosen: Recipe, results_dir: pathlib.Path) -> str:
    """`complete`, `k of n runs`, `none`, or `outdated`: made with another configuration."""
    held = records.read_runs(results_dir / chosen.name / RECORDS)
    if plan.outdated(chosen, held):
        return "outdated"
    done = {(record.variant, record.seed) for record in plan.matching(chosen, held)}
    needed = {(one.variant, one.seed) for one in plan.plan(chosen)}
    if needed <= done:
        return "complete"
    return f"{len(needed & done)} of {len(needed)} runs" if needed & done else "none"
