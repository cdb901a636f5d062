"""The figures of recipes."""

import io
from collections.abc import Callable, Sequence

from dfa_jax.errors import require
from dfa_jax.report import panel, series, style
from dfa_jax.report.panel import Axes, Figure
from dfa_jax.report.recipe import BASELINE, group_of, label_of
from dfa_jax.report.series import Series
from dfa_jax.report.statistics import summarise
from dfa_jax.report.style import Theme
from dfa_jax.train.records import Evaluation, RunRecord

DPI = 160


def draw(name: str, records: Sequence[RunRecord], theme: Theme = "light") -> bytes:
    """A recipe's figure as PNG; `records` must not be empty."""
    require("report", "a figure", "matplotlib")
    import matplotlib

    with matplotlib.rc_context(style.settings(theme)):
        figure = FIGURES[name](records, theme)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def learning_curves(records: Sequence[RunRecord], theme: Theme) -> Figure:
    """Test error (or loss) against epochs, a panel per group; below, alignment if measured."""
    groups = list(dict.fromkeys(group_of(record.variant) for record in records))
    aligned = bool(series.aligned_sites(informative(records)))
    figure, axes = panel.panels(1 + aligned, len(groups))
    for column, group in enumerate(groups):
        runs = by_label([record for record in records if group_of(record.variant) == group])
        draw_error(axes[0, column], runs, theme)
        title = "Test error" if series.has_errors(records) else "Test loss"
        axes[0, column].set_title(", ".join(filter(None, [title, group])))
        if aligned:
            draw_alignment(axes[1, column], runs, theme)
            axes[1, column].set_title(", ".join(filter(None, ["Gradient alignment", group])))
    if series.has_errors(records):
        panel.log_percent_axis(axes[0])
    panel.rule_legend(figure, list(by_label(records)), theme)
    return figure


def depth(records: Sequence[RunRecord], theme: Theme) -> Figure:
    """Errors and alignment against depth, and alignment by layer in the deepest network."""
    figure, axes = panel.panels(2, 2)
    test, train, mean_alignment, by_layer = axes.flat
    depths = sorted({num_layers(run) for run in records})
    for rule, runs in by_label(records).items():
        panel.line(test, against_depth(runs, series.test_error), rule, theme)
        panel.line(train, against_depth(runs, series.train_error), rule, theme)
        aligned = [run for run in informative(runs) if series.aligned_sites([run])]
        panel.line(mean_alignment, against_depth(aligned, series.mean_alignment), rule, theme)
        panel.line(by_layer, against_layer(aligned, depths[-1]), rule, theme)
    what, unit = ("error", "error, %") if series.has_errors(records) else ("loss", "loss")
    test.set(title=f"Test {what}", ylabel=f"test {unit}")
    train.set(title=f"Training {what}", ylabel=f"training {unit}")
    mean_alignment.set(title="Gradient alignment, mean over layers")
    by_layer.set(title=f"Gradient alignment by layer, {depths[-1]} layers")
    for axis in (test, train) if series.has_errors(records) else ():
        panel.log_percent_axis([axis])
    for axis in (mean_alignment, by_layer):
        panel.cosine_axis(axis)
        axis.set_ylabel("cosine with the true gradient")
    for axis in (test, train, mean_alignment):
        panel.count_axis(axis, "hidden layers", depths)
    panel.count_axis(by_layer, "layer, from the input")
    panel.rule_legend(figure, list(by_label(records)), theme)
    return figure


FIGURES: dict[str, Callable[[Sequence[RunRecord], Theme], Figure]] = {
    "learning_curves": learning_curves,
    "depth": depth,
}


def by_label(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """The records of each learning rule, by what the recipe calls it."""
    grouped: dict[str, list[RunRecord]] = {}
    for record in records:
        grouped.setdefault(label_of(record.variant), []).append(record)
    return grouped


def informative(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Without backpropagation, whose alignment with itself is 1."""
    return [run for run in runs if run.rule != BASELINE]


def num_layers(record: RunRecord) -> int:
    """Hidden layers of a recorded perceptron."""
    return len(record.config["model"]["widths"])


def draw_error(axes: Axes, runs: dict[str, list[RunRecord]], theme: Theme) -> None:
    """Test error (or loss) against epochs, a line per rule."""
    for rule, group in runs.items():
        curve = series.over_epochs(group, series.test_error)
        trained = curve.x > 0  # chance level at the start would flatten the rest
        panel.line(axes, Series(*(column[trained] for column in curve)), rule, theme)
    panel.count_axis(axes, "epochs")
    every = [run for group in runs.values() for run in group]
    axes.set_ylabel("test error, %" if series.has_errors(every) else "test loss")


def draw_alignment(axes: Axes, runs: dict[str, list[RunRecord]], theme: Theme) -> None:
    """Gradient alignment against epochs, a line per rule and site."""
    sites = series.aligned_sites([run for group in runs.values() for run in informative(group)])
    for rule, group in runs.items():
        for place, site in enumerate(sites):
            curve = series.over_epochs(
                informative(group), lambda e, s=site: series.alignment(e).get(s)
            )
            if len(curve.x):
                dashes = panel.DASHES[place % len(panel.DASHES)]
                panel.line(axes, curve, rule, theme, dashes)
    panel.cosine_axis(axes)
    panel.count_axis(axes, "epochs")
    axes.set_ylabel("cosine with the true gradient")
    panel.dash_legend(axes, sites, theme)


def against_depth(runs: Sequence[RunRecord], quantity: Callable[[Evaluation], float]) -> Series:
    """A quantity at the end of the runs against their number of layers."""
    values: dict[int, list[float]] = {}
    for run in runs:
        values.setdefault(num_layers(run), []).append(quantity(run.final))
    return series.from_summaries((layers, summarise(found)) for layers, found in values.items())


def against_layer(runs: Sequence[RunRecord], layers: int) -> Series:
    """Final alignment against the layer, counted from 1 at the input, of the runs of one depth."""
    runs = [run for run in runs if num_layers(run) == layers]
    return series.from_summaries(
        (layer, summarise([series.alignment(run.final)[site] for run in runs]))
        for layer, site in enumerate(series.aligned_sites(runs), start=1)
    )
