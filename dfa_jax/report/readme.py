"""What came out, written between markers: a line a recipe, paper by paper, or a line a paper."""

import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dfa_jax.errors import InputError
from dfa_jax.report import catalogue, finding, publish, study_page, table, verdict
from dfa_jax.report.finding import Finding
from dfa_jax.report.publish import Published
from dfa_jax.report.recipe import Recipe
from dfa_jax.report.table import OrderRow, Row

ALL = pathlib.Path("README.md")
"""Below the results: the file with every recipe."""

OWN = "Studies of our own"


class Outcome(NamedTuple):
    """A recipe, and what its runs say; nothing before all of them are in."""

    chosen: Published
    num_held: int = 0
    findings: Sequence[Finding] = ()
    rows: Sequence[Row] = ()
    orders: Sequence[OrderRow] = ()


class Paper(NamedTuple):
    """What recipes are of; its address is "" where it is not on arXiv."""

    authors: str
    title: str
    address: str

    @property
    def shown(self) -> str:
        """Authors and year, linked, and title."""
        linked = f"[{self.authors}]({self.address})" if self.address else self.authors
        return f"{linked}, *{self.title}*" if self.title else linked

    @property
    def anchor(self) -> str:
        """What a heading of these authors is called in links, on GitHub.

        >>> Paper("Nøkland (2016)", "", "").anchor
        'nøkland-2016'
        """
        return re.sub(r"[^\w -]", "", self.authors.lower()).replace(" ", "-")


def fill(readmes: Sequence[pathlib.Path], results_dir: pathlib.Path) -> None:
    """Replaces what stands between a pair of markers by what `SECTIONS` says.

    Raises:
        InputError: a file has no markers; none is written then.
    """
    for readme in readmes:
        if not readme.is_file() or not names_in(readme.read_text()):
            names = " or ".join(f"'<!-- {name}:begin -->'" for name in SECTIONS)
            raise InputError(f"{readme} has no line {names}, with its end, to write between")
    outcomes = [outcome(name, results_dir) for name in catalogue.names()]
    for readme in readmes:
        content = readme.read_text()
        here = pathlib.Path(os.path.relpath(results_dir, readme.parent))
        for name in names_in(content):
            section = SECTIONS[name](outcomes, here)
            filled = f"<!-- {name}:begin -->\n{section}\n<!-- {name}:end -->"
            content = between(name).sub(lambda _, filled=filled: filled, content)
        readme.write_text(content)


def names_in(content: str) -> list[str]:
    """The sections of which a file has the markers."""
    return [name for name in SECTIONS if between(name).search(content)]


def between(name: str) -> re.Pattern[str]:
    """A section with its markers; its text is the group."""
    return re.compile(f"<!-- {name}:begin -->\n(.*?)\n?<!-- {name}:end -->", re.DOTALL)


def outcome(name: str, results_dir: pathlib.Path) -> Outcome:
    """What is in of a recipe, judged.

    Raises:
        InputError: there is no such recipe.
    """
    chosen = catalogue.load(name)
    if publish.progress(chosen, results_dir) != "complete":
        return Outcome(chosen)
    held = publish.held_runs(chosen, results_dir)
    if isinstance(chosen, Recipe):
        rows, orders = table.rows(chosen, held), table.orders(chosen, held)
        return Outcome(chosen, len(held), rows=rows, orders=orders)
    return Outcome(chosen, len(held), study_page.findings(chosen, held))


def by_paper(outcomes: Sequence[Outcome]) -> dict[Paper, list[Outcome]]:
    """Papers in order of their recipes; studies of our own come last."""
    found: dict[Paper, list[Outcome]] = {}
    for one in outcomes:
        found.setdefault(paper(one.chosen.paper), []).append(one)
    return dict(sorted(found.items(), key=lambda pair: pair[0].authors == OWN))


def paper(citation: str) -> Paper:
    """First author with the year, title and address of a citation.

    >>> paper("Nobody, Noone and Sons (2020), Nothing, ever, arXiv 2001.00001, table 5")[:2]
    ('Nobody et al. (2020)', 'Nothing, ever')
    """
    if citation == "none":
        return Paper(OWN, "", "")
    if not (parts := re.match(r"(.+? \(\d{4}\)), (.+), arXiv ([\d.]+\d)", citation)):
        return Paper(citation, "", "")
    authors, title, number = parts.groups()
    authors = re.sub(r"^([^,]+), .+ \(", r"\1 et al. (", authors)
    return Paper(authors, title, f"https://arxiv.org/abs/{number}")


def recipes(outcomes: Sequence[Outcome], results_dir: pathlib.Path) -> str:
    """A table for each paper, a line for each recipe whose runs are all in; then the others."""
    parts = []
    for of, group in by_paper(outcomes).items():
        parts += [f"## {of.authors}", f"{of.shown}."] if of.address else [f"## {of.authors}"]
        headings = ("recipe", "what came out", "made of", "more")
        lines = [_line(one, results_dir) for one in group if one.num_held]
        parts += [_table(headings, lines)] if lines else []
        others = [f"`{one.chosen.name}` ({one.chosen.title})" for one in group if not one.num_held]
        parts += [f"Not run here: {'; '.join(others)}."] if others else []
    return "\n\n".join(parts)


def papers(outcomes: Sequence[Outcome], results_dir: pathlib.Path) -> str:
    """A line for each paper: what came out of all its recipes, and where they are."""
    lines = []
    for of, group in by_paper(outcomes).items():
        run = [one for one in group if one.num_held]
        recipes = f"[{len(run)} of {len(group)} recipes]({results_dir / ALL}#{of.anchor})"
        lines.append((of.shown, came(run) if run else "Not run here.", recipes))
    return _table(("paper", "what came out", "of"), lines)


def came(outcomes: Sequence[Outcome]) -> str:
    """How many expectations were met, published numbers and orders reproduced; or a dash.

    What was missed, and by how much, is in the tables.
    """
    findings = [one for of in outcomes for one in of.findings]
    rows = [row for of in outcomes for row in of.rows]
    orders = [row for of in outcomes for row in of.orders]
    sentences = [finding.summary(findings)] if findings else []
    for part in (verdict.on_published(rows), verdict.on_orders(orders)):
        sentences += [part.partition(";")[0].rstrip(".") + "."] if part else []
    return " ".join(sentences) or "-"


def _line(one: Outcome, results_dir: pathlib.Path) -> tuple[str, ...]:
    """Title, verdict, how many runs, and where table, figure and records are."""
    chosen, folder = one.chosen, results_dir / one.chosen.name
    if isinstance(chosen, Recipe):
        made = f"{one.num_held} runs, {len(chosen.seeds)} seeds"
    else:
        made = f"{one.num_held} {study_page.unit(chosen)}"
    links = {
        "table": folder / "table.md",
        "figure": folder / "figure.png",
        "records": results_dir / chosen.source / publish.RECORDS,
    }
    more = ", ".join(f"[{name}]({path.as_posix()})" for name, path in links.items())
    return f"{chosen.title}<br>`{chosen.name}`", came([one]), made, more


def _table(headings: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    rows = [headings, ("---",) * len(headings), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


SECTIONS: dict[str, Callable[[Sequence[Outcome], pathlib.Path], str]] = {
    "results": recipes,
    "papers": papers,
}
"""By the name in its markers."""
