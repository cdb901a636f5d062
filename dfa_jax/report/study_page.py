"""A study's table, figure and page."""

import base64
import io
from collections.abc import Sequence
from html import escape

import matplotlib

from dfa_jax.report import finding, page, provenance, study, style, text
from dfa_jax.report.figure import DPI
from dfa_jax.report.finding import Finding
from dfa_jax.report.study import CaseRecord, Study
from dfa_jax.report.style import Theme
from dfa_jax.report.template import PAGE

HEADINGS = ("what", "expected", "how that is known", "found", "verdict")
CAPTION = (
    "Mean ± half of the 95 % interval (Student's t) where n seeds are averaged, else the range over"
    " them. A number is *reproduced* if our interval meets the expected one."
)


def findings(chosen: Study, held: Sequence[CaseRecord]) -> list[Finding]:
    """The study's findings; none while cases are missing."""
    return list(chosen.findings(study.results(held))) if len(held) == len(chosen.cases) else []


def markdown(chosen: Study, held: Sequence[CaseRecord]) -> str:
    """Title, verdict and table as Markdown."""
    return f"# {chosen.title}\n\n{table(findings(chosen, held))}\n\n{CAPTION}\n"


def table(found: Sequence[Finding]) -> str:
    """The findings as a Markdown table, with the count of those that hold."""
    if not found:
        return "Not all cases are in yet."
    lines = [HEADINGS, ("---",) * len(HEADINGS), *map(_cells, found)]
    rows = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{finding.summary(found)}\n\n{rows}"


def _cells(one: Finding) -> tuple[str, ...]:
    return one.claim, one.expected, one.source, one.found, verdict(one)


def verdict(one: Finding) -> str:
    """In a word."""
    return "reproduced" if one.holds else "not reproduced"


def figure(chosen: Study, held: Sequence[CaseRecord], theme: Theme = "light") -> bytes:
    """The figure as PNG."""
    with matplotlib.rc_context(style.settings(theme)):
        drawn = chosen.draw(study.results(held), theme)
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def html(chosen: Study, held: Sequence[CaseRecord]) -> str:
    """The page; `held` has at least one case."""
    found = findings(chosen, held)
    images = {
        theme: base64.b64encode(figure(chosen, held, theme)).decode() for theme in ("light", "dark")
    }
    seconds = sum(record.wall_seconds for record in held)
    badges = [
        f"{len(held)} of {len(chosen.cases)} cases",
        finding.summary(found) if found else "not complete",
        f"{text.duration(seconds)} of computing",
    ]
    return PAGE.substitute(
        title=escape(chosen.title),
        paper=escape(chosen.paper),
        badges="".join(f"<span>{escape(badge)}</span>" for badge in badges),
        verdicts="".join(map(_verdict_line, found)) or "<li>Not all cases are in yet.</li>",
        light=f"data:image/png;base64,{images['light']}",
        dark=f"data:image/png;base64,{images['dark']}",
        alt=escape(f"Figure: {chosen.title}"),
        figure_note="",
        table=_html_table(found),
        caption=page.emphasise(CAPTION),
        header=page.header(chosen.header),
        command=escape(f"python scripts/reproduce.py {chosen.name}"),
        facts=page.pairs(provenance.merged(record.environment for record in held)),
        settings=page.pairs(provenance.settings([record.config for record in held])),
        runs_title=f"All {len(held)} cases",
        runs_head=page.table_row("th", ("case", "seconds", "commit")),
        runs="".join(page.table_row("td", _case_cells(record)) for record in held),
    )


def _verdict_line(one: Finding) -> str:
    kind = "good" if one.holds else "bad"
    words = f"{one.claim}: {one.found}, expected {one.expected}"
    return f'<li><b class="{kind}">{verdict(one)}</b> {escape(words)}</li>'


def _html_table(found: Sequence[Finding]) -> str:
    lines = [f"<thead>{page.table_row('th', HEADINGS)}</thead>"]
    for one in found:
        *cells, last = _cells(one)
        inner = "".join(f'<td class="wrap">{escape(cell)}</td>' for cell in cells)
        kind = "good" if one.holds else "bad"
        lines.append(f'<tr>{inner}<td class="{kind}">{escape(last)}</td></tr>')
    return "".join(lines)


def _case_cells(record: CaseRecord) -> tuple[str, ...]:
    return record.case, f"{record.wall_seconds:.1f}", record.environment["commit"] or "unknown"
