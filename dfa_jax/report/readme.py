"""The README's results: a line for every finished recipe, between two markers."""

import pathlib
import re

from dfa_jax.errors import InputError
from dfa_jax.report import catalogue, finding, publish, study_page, table, verdict
from dfa_jax.report.recipe import Recipe
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.study import Study
from dfa_jax.train.records import RunRecord

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
FEATURED = (
    "direct_feedback_alignment/mnist_mlp",
    "align_then_memorise/theory_vs_simulation",
    "forward_gradient/mnist",
    "scaling_laws/frontier",
)
"""Recipes whose figures are shown, one a paper; the others are a link away."""


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
    """A line for each recipe whose runs are all in, then some of the figures."""
    lines = {name: _line(name, results_dir) for name in catalogue.names()}
    if not any(lines.values()):
        return "None yet."
    heading = ("recipe", "what came out", "made of", "more")
    rows = [heading, ("---",) * len(heading), *filter(None, lines.values())]
    shown = "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
    figures = [
        f"![{catalogue.load(name).title}]({(results_dir / name).as_posix()}/figure.png)"
        for name in FEATURED
        if lines.get(name)
    ]
    return "\n\n".join([shown, *figures])


def _line(name: str, results_dir: pathlib.Path) -> tuple[str, ...]:
    """Title, verdict, how many runs, and where table, figure and records are; `()` if not in."""
    chosen = catalogue.load(name)
    if publish.progress(chosen, results_dir) != "complete":
        return ()
    held, folder = publish.held_runs(chosen, results_dir), (results_dir / name).as_posix()
    if isinstance(chosen, Study | RunStudy):
        came = finding.summary(study_page.findings(chosen, held))
        made = f"{len(held)} {study_page.unit(chosen)}"
    else:
        came = _verdict(chosen, held)
        made = f"{len(held)} runs, {len(chosen.seeds)} seeds"
    source = (results_dir / chosen.source).as_posix()
    links = {
        "table": f"{folder}/table.md",
        "figure": f"{folder}/figure.png",
        "records": f"{source}/{publish.RECORDS}",
    }
    more = ", ".join(f"[{name}]({path})" for name, path in links.items())
    return f"{chosen.title}<br>`{name}`", came, made, more


def _verdict(recipe: Recipe, held: list[RunRecord]) -> str:
    """How many published numbers and orders came out; a dash where nothing was published."""
    rows, orders = table.rows(recipe, held), table.orders(recipe, held)
    found = (verdict.on_published(rows), verdict.on_orders(orders))
    # What was missed, and by how much, is in the table.
    return " ".join(part.partition(";")[0].rstrip(".") + "." for part in found if part) or "-"
