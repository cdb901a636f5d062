"""Table, figure and page of a study, be it of cases or of training runs."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from html import escape

from dfa_jax.errors import require
from dfa_jax.report import finding, page, provenance, style, text
from dfa_jax.report.figure import DPI
from dfa_jax.report.finding import Finding
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.study import CaseRecord, Study
from dfa_jax.report.style import Theme
from dfa_jax.report.template import PAGE
from dfa_jax.train.records import RunRecord

Studies = Study | RunStudy
Held = Sequence[CaseRecord] | Sequence[RunRecord]

HEADINGS = ("what", "expected", "how that is known", "found", "verdict")
CAPTION = (
    "Mean ± half of the 95 % interval (Student's t) where n seeds are averaged, else the range over"
    " them. A number is *reproduced* if our interval meets the expected one."
)

ON_DOUBT = "Learning rates not established: nothing follows from how these curves compare."
_CLASSES = {"reproduced": "good", "not reproduced": "bad", "rate not established": "wrap"}


def findings(chosen: Studies, held: Held) -> list[Finding]:
    """The study's findings; none while cases or runs are missing."""
    if len(held) < len(chosen.needed):
        return []
    found = chosen.findings(chosen.results(held))  # pyright: ignore[reportArgumentType]
    if not doubt(chosen):
        return list(found)
    return [dataclasses.replace(one, rate_established=False) for one in found]


def doubt(chosen: Studies) -> str:
    """Why nothing follows from the learning rates that were used; "" if something does."""
    return chosen.rate_doubt if isinstance(chosen, RunStudy) else ""


def markdown(chosen: Studies, found: Sequence[Finding]) -> str:
    """Title, verdict, doubt if there is one, and table as Markdown."""
    said = [f"**Rate not established.** {doubt(chosen)}"] if doubt(chosen) else []
    return "\n\n".join([f"# {chosen.title}", *said, table(found), CAPTION]) + "\n"


def table(found: Sequence[Finding]) -> str:
    """The findings as a Markdown table, with the count of those that hold."""
    if not found:
        return "Not all of it is in yet."
    lines = [HEADINGS, ("---",) * len(HEADINGS), *map(_cells, found)]
    rows = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{finding.summary(found)}\n\n{rows}"


def _cells(one: Finding) -> tuple[str, ...]:
    return one.claim, one.expected, one.source, one.found, one.verdict


def figure(chosen: Studies, held: Held, theme: Theme = "light") -> bytes:
    """The figure as PNG; below it, whether its rates are in doubt."""
    require("report", "a figure", "matplotlib")
    import matplotlib

    with matplotlib.rc_context(style.settings(theme)):
        found = chosen.results(held)  # pyright: ignore[reportArgumentType]
        drawn = chosen.draw(found, theme)  # pyright: ignore[reportArgumentType]
        if doubt(chosen):
            drawn.supxlabel(ON_DOUBT, weight="bold")  # above there may be a legend
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def html(chosen: Studies, held: Held, found: Sequence[Finding], images: Mapping[str, bytes]) -> str:
    """The page; `held` has at least one case or run; `images` are the figure by theme."""
    seconds = sum(record.wall_seconds for record in held)
    badges = [
        f"{len(held)} of {len(chosen.needed)} {unit(chosen)}",
        finding.summary(found) if found else "not complete",
        f"{text.duration(seconds)} of computing",
    ]
    return PAGE.substitute(
        title=escape(chosen.title),
        paper=escape(chosen.paper),
        badges="".join(f"<span>{escape(badge)}</span>" for badge in badges),
        verdicts=_doubt_line(chosen)
        + ("".join(map(_verdict_line, found)) or "<li>Not all of it is in yet.</li>"),
        light=page.png(images["light"]),
        dark=page.png(images["dark"]),
        alt=escape(f"Figure: {chosen.title}"),
        figure_note="",
        table=_html_table(found),
        caption=page.emphasise(CAPTION),
        header=page.header(chosen.header),
        command=escape(f"python scripts/reproduce.py {chosen.name}"),
        facts=page.pairs(provenance.merged(record.environment for record in held)),
        settings=page.pairs(provenance.settings([record.config for record in held])),
        runs_title=f"All {len(held)} {unit(chosen)}",
        runs_head=page.table_row("th", (unit(chosen)[:-1], "seconds", "commit")),
        runs="".join(
            page.table_row("td", _cells_of(chosen.label(record), record))  # pyright: ignore[reportArgumentType]
            for record in held
        ),
    )


def _doubt_line(chosen: Studies) -> str:
    return f"<li><b>Rate not established.</b> {escape(doubt(chosen))}</li>" if doubt(chosen) else ""


def _verdict_line(one: Finding) -> str:
    words = f"{one.claim}: {one.found}, expected {one.expected}"
    return f'<li><b class="{_CLASSES[one.verdict]}">{one.verdict}</b> {escape(words)}</li>'


def _html_table(found: Sequence[Finding]) -> str:
    lines = [f"<thead>{page.table_row('th', HEADINGS)}</thead>"]
    for one in found:
        *cells, last = _cells(one)
        inner = "".join(f'<td class="wrap">{escape(cell)}</td>' for cell in cells)
        lines.append(f'<tr>{inner}<td class="{_CLASSES[one.verdict]}">{escape(last)}</td></tr>')
    return "".join(lines)


def _cells_of(label: str, record: CaseRecord | RunRecord) -> tuple[str, ...]:
    return label, f"{record.wall_seconds:.1f}", record.environment["commit"] or "unknown"


def unit(chosen: Studies) -> str:
    """What a study is made of."""
    return "runs" if isinstance(chosen, RunStudy) else "cases"
