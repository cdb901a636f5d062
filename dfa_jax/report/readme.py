"""The README's results: every finished recipe's table and figure, between two markers."""

import pathlib
import re

from dfa_jax.errors import InputError
from dfa_jax.report import catalogue, finding, publish, study_page, table, text, verdict
from dfa_jax.report.recipe import Recipe
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.study import Study
from dfa_jax.train.records import RunRecord

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
_MOST_ROWS = 8  # a longer table is one link away


def fill(readme: pathlib.Path, results_dir: pathlib.Path) -> None:
    """Replaces what stands between the markers by `section`.

    Raises:
        InputError: the file lacks the markers.
    """
    content = readme.read_text()
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    if not pattern.search(content):
        raise InputError(f"{readme} has no lines '{BEGIN}' and '{END}' to write between")
    found = section(results_dir)
    readme.write_text(pattern.sub(lambda _: f"{BEGIN}\n{found}\n{END}", content))


def section(results_dir: pathlib.Path) -> str:
    """A heading, a table and a figure per recipe whose runs are all in."""
    parts = [_recipe(name, results_dir) for name in catalogue.names()]
    return "\n\n".join(part for part in parts if part) or "None yet."


def _recipe(name: str, results_dir: pathlib.Path) -> str:
    chosen = catalogue.load(name)
    folder = results_dir / name
    if publish.progress(chosen, results_dir) != "complete":
        return ""
    held, where = publish.held_runs(chosen, results_dir), folder.as_posix()
    commits = sorted({record.environment["commit"] or "unknown" for record in held})
    if isinstance(chosen, Study | RunStudy):
        shown = [finding.summary(study_page.findings(chosen, held))]
        made = f"{len(held)} {study_page.unit(chosen)}"
    else:
        rows = table.rows(chosen, held)
        shown = _table(rows) if len(rows) <= _MOST_ROWS else _sentences(chosen, held)
        made = f"{len(held)} runs, seeds {', '.join(map(str, chosen.seeds))}"
    source = (results_dir / getattr(chosen, "source", name)).as_posix()
    return "\n".join(
        [
            f"**{chosen.title}** (`python scripts/reproduce.py {name}`)",
            "",
            *shown,
            *([""] if shown else []),
            f"![{chosen.title}]({where}/figure.png)",
            "",
            f"{made}; made at commit {', '.join(commits)}; [table]({where}/table.md),"
            f" [records]({source}/{publish.RECORDS}).",
        ]
    )


def _sentences(recipe: Recipe, held: list[RunRecord]) -> list[str]:
    """What a longer table comes to; where nothing was published, nothing."""
    rows = table.rows(recipe, held)
    found = (verdict.on_published(rows), verdict.on_orders(table.orders(recipe, held)))
    return [" ".join(filter(None, found))] if any(found) else []


def _table(rows: list[table.Row]) -> list[str]:
    """Test errors and, where there are any, published numbers and verdicts."""
    shown = [
        (
            row.variant,
            text.summary(row.test),
            "; ".join(map(text.published, row.published)) or text.NOTHING,
            "; ".join(text.verdict(row.measured(n.quantity), n) for n in row.published)
            or text.NOTHING,
        )
        for row in rows
    ]
    columns = 4 if any(row.published for row in rows) else 2
    headings = ("variant", "test error, %", "published, %", "verdict")[:columns]
    lines = [headings, ("---",) * columns, *(cells[:columns] for cells in shown)]
    return ["| " + " | ".join(line) + " |" for line in lines]
