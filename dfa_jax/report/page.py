"""One self-contained HTML page a recipe: figure, table, verdict, and what was run."""

import base64
from collections.abc import Sequence
from html import escape

from dfa_jax.report import figure, style, table
from dfa_jax.report.recipe import BASELINE, Recipe
from dfa_jax.report.series import test_error, train_error
from dfa_jax.report.table import Row, format_seconds
from dfa_jax.report.template import PAGE
from dfa_jax.train.records import RunRecord

SIGNIFICANT = 0.01  # p-value below which a difference is called one


def html(recipe: Recipe, records: Sequence[RunRecord]) -> str:
    """The page; `records` are those that `plan.matching` gives, at least one."""
    rows = table.rows(recipe, records)
    return PAGE.substitute(
        title=escape(recipe.title),
        paper=escape(recipe.paper),
        badges="".join(f"<span>{escape(text)}</span>" for text in badges(recipe, records)),
        verdicts="".join(f"<li>{text}</li>" for text in verdicts(rows)),
        light=png(recipe, records, "light"),
        dark=png(recipe, records, "dark"),
        alt=escape(f"Figure: {recipe.title}"),
        table=html_table(rows),
        caption=emphasise(table.CAPTION),
        sources=escape(table.sources(recipe)),
        header="".join(f"<p>{escape(part)}</p>" for part in recipe.header.split("\n\n")[1:]),
        command=escape(f"python scripts/reproduce.py {recipe.name}"),
        facts="".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts(records)),
        num_runs=len(records),
        runs="".join(run_line(record) for record in records),
    )


def png(recipe: Recipe, records: Sequence[RunRecord], theme: style.Theme) -> str:
    """The figure as a data address."""
    image = base64.b64encode(figure.draw(recipe.figure, records, theme)).decode()
    return f"data:image/png;base64,{image}"


def badges(recipe: Recipe, records: Sequence[RunRecord]) -> list[str]:
    """What the page rests on, in a few words each."""
    total = len(recipe.variants) * len(recipe.seeds)
    seeds = {record.seed for record in records}
    return [
        f"{len(records)} of {total} runs" if len(records) < total else f"{len(records)} runs, complete",
        f"{len(seeds)} seed" + "s" * (len(seeds) > 1),
        f"{format_seconds(sum(record.wall_seconds for record in records))} of computing",
    ]


def verdicts(rows: Sequence[Row]) -> list[str]:
    """The page's findings, one sentence each, as HTML."""
    return published_verdict(rows) + [
        rule_verdict(rule, [row for row in rows if row.rule == rule])
        for rule in dict.fromkeys(row.rule for row in rows)
        if rule != BASELINE and any(row.rule == rule and row.difference for row in rows)
    ]


def published_verdict(rows: Sequence[Row]) -> list[str]:
    """How many published numbers were met; nothing if the recipe has none."""
    pairs = [(row, number) for row in rows for number in row.published]
    if not pairs:
        return []
    met = [table.is_reproduced(row.measured(number.quantity), number) for row, number in pairs]
    missed = [
        f"{row.variant} ({table.gap(row.measured(number.quantity), number):+.2f})"
        for (row, number), ok in zip(pairs, met, strict=True)
        if not ok
    ]
    provenance = " / ".join(dict.fromkeys(number.provenance for _, number in pairs))
    tail = f" Not reproduced, gap in percentage points: {escape(', '.join(missed))}." if missed else ""
    return [
        f"<b>{sum(met)} of {len(pairs)} published numbers reproduced</b>"
        f" (numbers: {escape(provenance)}).{tail}"
    ]


def rule_verdict(rule: str, rows: Sequence[Row]) -> str:
    """A rule against backpropagation over the groups."""
    differences = [row.difference for row in rows if row.difference]
    means = [difference.mean for difference in differences]
    certain = sum(
        difference.p_value is not None and difference.p_value < SIGNIFICANT
        for difference in differences
    )
    span = f"{means[0]:+.2f}" if len(means) == 1 else f"{min(means):+.2f} to {max(means):+.2f}"
    tests = f"p &lt; {SIGNIFICANT} in {certain} of {len(differences)}"
    if len(differences) == 1:
        tests = f"p {'&lt;' if certain else '≥'} {SIGNIFICANT}"
    return f"{chip(rule)}<b>{escape(style.label(rule))}</b>: {span} points of test error ({tests})."


def chip(rule: str) -> str:
    """A dot in the rule's colour."""
    light, dark = (style.colour(rule, theme) for theme in ("light", "dark"))
    return f'<i class="chip" style="--light:{light};--dark:{dark}"></i>'


def html_table(rows: Sequence[Row]) -> str:
    """The table with a heading per group and the rules' colours."""
    parts = ["<thead><tr>", *(f"<th>{escape(heading)}</th>" for heading in table.HEADINGS), "</tr></thead>"]
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            parts.append(f'<tr class="group"><th colspan="{len(table.HEADINGS)}">{escape(group)}</th></tr>')
        _, *cells = table.cells(row)
        name = f"{chip(row.rule)}{escape(row.variant.rpartition('/')[2].replace('_', ' '))}"
        body = "".join(f'<td class="{state(cell)}">{escape(cell)}</td>' for cell in cells)
        parts.append(f"<tr><th>{name}</th>{body}</tr>")
    return "".join(parts)


def state(cell: str) -> str:
    """The class of a cell: verdicts are coloured."""
    for start, name in (("reproduced", "good"), ("not reproduced", "bad")):
        if cell.startswith(start):
            return name
    return ""


def emphasise(text: str) -> str:
    """Escapes a text and turns its *words* into emphasis."""
    parts = escape(text).split("*")
    return "".join(f"<em>{part}</em>" if i % 2 else part for i, part in enumerate(parts))


def facts(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Where and with what the runs were made; several values where runs differ."""
    found: dict[str, dict[str, None]] = {"seeds": {}}
    for record in records:
        found["seeds"][str(record.seed)] = None
        for name, value in record.environment.items():
            found.setdefault(name, {})[value or "unknown"] = None
    return [(name, ", ".join(values)) for name, values in found.items()]


def run_line(record: RunRecord) -> str:
    """One run in the full list."""
    final = record.final
    cells = (
        record.variant,
        str(record.seed),
        f"{test_error(final):.2f}",
        f"{train_error(final):.2f}",
        f"{final.test_loss:.4f}",
        f"{record.num_params:,}",
        f"{record.num_steps:,}",
        f"{record.wall_seconds:.1f}",
        record.environment.get("commit") or "unknown",
    )
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
