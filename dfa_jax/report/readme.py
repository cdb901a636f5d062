"""The README's results: every finished recipe's table and figure, between two markers."""

import pathlib
import re

from dfa_jax.errors import InputError
from dfa_jax.report import plan, publish, recipe, table, text
from dfa_jax.train import records

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
    parts = [_recipe(name, results_dir) for name in recipe.names()]
    return "\n\n".join(part for part in parts if part) or "None yet."


def _recipe(name: str, results_dir: pathlib.Path) -> str:
    chosen = recipe.load(name)
    folder = results_dir / name
    if publish.progress(chosen, results_dir) != "complete":
        return ""
    held = plan.matching(chosen, records.read_runs(folder / publish.RECORDS))
    rows = table.rows(chosen, held)
    commits = sorted({record.environment["commit"] or "unknown" for record in held})
    where = folder.as_posix()
    lines = [f"**{chosen.title}** (`python scripts/reproduce.py {name}`)", ""]
    if len(rows) <= _MOST_ROWS:
        lines += [*_table(rows), ""]
    lines += [
        f"![{chosen.title}]({where}/figure.png)",
        "",
        f"{len(held)} runs, seeds {', '.join(map(str, chosen.seeds))}; made at commit"
        f" {', '.join(commits)}; [table]({where}/table.md), [records]({where}/{publish.RECORDS}).",
    ]
    return "\n".join(lines)


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
