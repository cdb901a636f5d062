"""One self-contained HTML page a recipe: figure, table, verdict, and what was run."""

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape

from dfa_jax.report import provenance, style, table, text, verdict
from dfa_jax.report.recipe import Recipe
from dfa_jax.report.table import OrderRow, Row
from dfa_jax.report.template import PAGE
from dfa_jax.train.records import RunRecord


def html(recipe: Recipe, records: Sequence[RunRecord], images: Mapping[str, bytes]) -> str:
    """The page; `records` are those that `plan.matching` gives, at least one; `images` by theme."""
    rows = table.rows(recipe, records)
    return PAGE.substitute(
        title=escape(recipe.title),
        paper=escape(recipe.paper),
        badges="".join(f"<span>{escape(badge)}</span>" for badge in badges(recipe, records)),
        verdicts=verdicts(rows, table.orders(recipe, records)),
        light=png(images["light"]),
        dark=png(images["dark"]),
        alt=escape(f"Figure: {recipe.title}"),
        table=html_table(rows),
        caption=emphasise(table.caption(recipe, rows)),
        header=header(recipe.header),
        command=escape(f"python scripts/reproduce.py {recipe.name}"),
        facts=pairs(provenance.facts(records)),
        settings=pairs(provenance.settings([record.config for record in records])),
        figure_note="Lines: mean over seeds; bands: 95 % interval (Student's t).",
        runs_title=f"All {len(records)} runs",
        runs_head=table_row("th", provenance.RUN_HEADINGS),
        runs="".join(map(run_line, records)),
    )


def png(image: bytes) -> str:
    """A figure as a data address."""
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def badges(recipe: Recipe, records: Sequence[RunRecord]) -> list[str]:
    """What the page rests on, in a few words each."""
    total = len(recipe.variants) * len(recipe.seeds)
    complete = len(records) >= total
    num_seeds = len({record.seed for record in records})
    seconds = sum(record.wall_seconds for record in records)
    return [
        f"{len(records)} runs, complete" if complete else f"{len(records)} of {total} runs",
        "1 seed" if num_seeds == 1 else f"{num_seeds} seeds",
        f"{text.duration(seconds)} of computing",
    ]


def verdicts(rows: Sequence[Row], orders: Sequence[OrderRow]) -> str:
    """The findings as list items."""
    found = (verdict.on_published(rows), verdict.on_orders(orders))
    items = [escape(sentence) for sentence in found if sentence]
    items += [
        f"{chip(rule)}<b>{escape(style.label(rule))}</b>: {escape(sentence)}"
        for rule, sentence in verdict.on_rules(rows).items()
    ]
    return "".join(f"<li>{item}</li>" for item in items or ["Nothing to compare with yet."])


def chip(rule: str) -> str:
    """A dot in the rule's colour."""
    light, dark = style.colour(rule, "light"), style.colour(rule, "dark")
    return f'<i class="chip" style="--light:{light};--dark:{dark}"></i>'


def html_table(rows: Sequence[Row]) -> str:
    """The table, with a line above each group and the rules' colours."""
    headings, *lines = table.grid(rows)
    cells = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    parts, group = [f"<thead><tr>{cells}</tr></thead>"], ""
    for row, line in zip(rows, lines, strict=True):
        if row.group != group:
            group, span = row.group, len(line)
            parts.append(f'<tr class="group"><th colspan="{span}">{escape(group)}</th></tr>')
        label = style.label(row.label)
        cells = "".join(f'<td class="{state(cell)}">{escape(cell)}</td>' for cell in line[1:])
        parts.append(f"<tr><th>{chip(row.label)}{escape(label)}</th>{cells}</tr>")
    return "".join(parts)


def state(cell: str) -> str:
    """The class of a cell: verdicts are coloured, long cells wrapped."""
    if cell.startswith("not reproduced"):
        return "bad"
    if cell.startswith("reproduced"):
        return "good"
    return "wrap" if len(cell) > 26 else ""


def emphasise(words: str) -> str:
    """Escapes a text and turns its *words* into emphasis."""
    parts = escape(words).split("*")
    return "".join(f"<em>{part}</em>" if i % 2 else part for i, part in enumerate(parts))


def header(docstring: str) -> str:
    """What the recipe file says beyond its title, paper and command."""
    unwrapped = re.sub(r"\n +", " ", docstring)
    _, _, body = unwrapped.partition("\nTime: ")
    time_and_rest = re.sub(r"(?m)^Expect: ", "\n\nExpected: ", f"Time: {body}")
    return "".join(f"<p>{escape(part.strip())}</p>" for part in time_and_rest.split("\n\n"))


def pairs(found: Sequence[tuple[str, str]]) -> str:
    """Names and values as a definition list's items."""
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in found)


def run_line(record: RunRecord) -> str:
    """One run in the full list."""
    return table_row("td", provenance.run_cells(record))


def table_row(tag: str, cells: Sequence[str]) -> str:
    """Plain cells of one kind as a row."""
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
