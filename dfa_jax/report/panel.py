"""The parts of figures: panels, lines with bands, axes, the legend of rules.

Matplotlib is loaded when something is drawn: recipes are read where nothing will be, too.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dfa_jax.report import style
from dfa_jax.report.series import Series
from dfa_jax.report.style import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
else:
    Axes = Figure = Any

DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))


def panels(num_rows: int, num_columns: int) -> tuple[Figure, np.ndarray]:
    """A figure and its panels, `[row, column]`; a single column lies down, side by side."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    across, down = (num_rows, 1) if num_columns == 1 else (num_columns, num_rows)
    size = (4.6 * across + 0.6, 3.7 * down + 0.5)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=size, layout=layout)  # no pyplot: no global state, no display
    axes = figure.subplots(down, across, squeeze=False)
    return figure, axes.reshape(num_rows, num_columns)


def line(axes: Axes, curve: Series, rule: str, theme: Theme, dashes: Any = DASHES[0]) -> None:
    """The mean as a line in the rule's colour, the interval as a band."""
    band(
        axes,
        curve,
        style.colour(rule, theme),
        linestyle=dashes,
        marker=style.rule_style(rule).marker,
        markevery=max(1, len(curve.x) // 8),
    )


def band(axes: Axes, curve: Series, colour: str, **options: Any) -> None:
    """The mean as a line and the interval as a band, in any colour."""
    axes.plot(curve.x, curve.mean, color=colour, **options)
    axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)


def log_percent_axis(axes: Iterable[Axes]) -> None:
    """One logarithmic range of per cents for all panels, with plain labels at 1, 1.5, 2, 3, ..."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes = list(axes)
    lines = [line for panel in axes for line in panel.lines]
    bands = [path for panel in axes for band in panel.collections for path in band.get_paths()]
    means = [y for line in lines for y in np.asarray(line.get_ydata(), float)]
    ends = [y for path in bands for y in np.asarray(path.vertices, float)[:, 1]]
    best = min((y for y in means if y > 0), default=1.0)
    # An interval may reach 0 or below, where a logarithmic axis ends: show half of the best mean.
    low = max(min([best, *ends]), best / 2)
    high = max([best, *means, *ends])
    ticks = [m * 10.0**e for e in range(-3, 3) for m in (1, 1.5, 2, 3, 5, 7)]
    for panel in axes:
        panel.set_yscale("log")
        panel.set_ylim(low / 1.1, min(high * 1.1, 100))
        panel.yaxis.set_major_locator(FixedLocator(ticks))
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.yaxis.set_minor_locator(NullLocator())


def log_loss_axis(axes: Axes) -> None:
    """A logarithmic range of losses with plain labels at 1, 1.5, 2, 2.5, 3, 4, ..."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([0.5, 0.7, 1, 1.5, 2, 2.5, *range(3, 12)]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def count_axis(axes: Axes, name: str, ticks: Sequence[int] | None = None) -> None:
    """Whole numbers along x: these, or round ones."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    axes.set_xlabel(name)
    axes.xaxis.set_major_locator(FixedLocator(ticks) if ticks else MaxNLocator(integer=True))


def cosine_axis(axes: Axes) -> None:
    """From just below 0, or the lowest value, to 1, with a line at 0."""
    axes.set_ylim(min(-0.05, axes.get_ylim()[0]), 1.0)
    axes.axhline(0, color=axes.xaxis.label.get_color(), linewidth=0.8)


def rule_legend(figure: Figure, rules: Sequence[str], theme: Theme) -> None:
    """All rules above the panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=style.colour(rule, theme),
            marker=style.rule_style(rule).marker,
            label=style.label(rule),
        )
        for rule in rules
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(rules), 5))


def dash_legend(axes: Axes, sites: Sequence[str], theme: Theme) -> None:
    """Which dashes are which site."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=style.INK[theme], linestyle=DASHES[i % len(DASHES)], label=site)
        for i, site in enumerate(sites)
    ]
    axes.legend(handles=handles, loc="best")
