"""Ensembles as cases of a study, and curves of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from dfa_jax.report import panel, style
from dfa_jax.report.panel import Axes
from dfa_jax.report.series import Series, from_summaries
from dfa_jax.report.shrink import shrink_config
from dfa_jax.report.statistics import summarise
from dfa_jax.report.study import Arrays
from dfa_jax.report.style import Theme
from dfa_jax.train.config import TrainConfig
from dfa_jax.train.ensemble import fit_ensemble


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Seeds of one configuration, trained at once on shared feedback.

    Attributes:
        config: the run; it must have a `feedback_seed`.
        seeds: of parameters and order of examples.
        num_examples: training examples on which loss and error are measured.
    """

    config: TrainConfig
    seeds: tuple[int, ...] = tuple(range(10))
    num_examples: int = 2000

    def run(self) -> Mapping[str, np.ndarray]:
        """Trains and measures: see `train.ensemble.fit_ensemble`."""
        return fit_ensemble(self.config, self.seeds, num_examples=self.num_examples)

    def shrunk(self) -> "Ensemble":
        """Two seeds of a small network on few examples."""
        return dataclasses.replace(self, config=shrink_config(self.config), seeds=self.seeds[:2])


def over_epochs(found: Arrays, name: str) -> Series:
    """A measurement against true epochs, the start left out (a logarithmic axis has no 0).

    A curve over seeds, `[time, seed]`, has their mean and interval; one value a time has itself.
    """
    values = found[name].reshape(len(found["epoch"]), -1)
    points = (
        (epoch, summarise([float(value) for value in row[np.isfinite(row)]]))
        for epoch, row in zip(found["epoch"], values, strict=True)
        if epoch > 0 and np.isfinite(row).any()
    )
    return from_summaries(points)


def draw(axes: Axes, curve: Series, colour: str, **options: Any) -> None:
    """Mean as a line, interval as a band, on a logarithmic axis of epochs."""
    panel.band(axes, curve, colour, **options)
    axes.set(xscale="log", xlabel="epochs")


def layer_colour(place: int, theme: Theme) -> str:
    """One colour a layer, the same in every figure."""
    return getattr(style.SPARE[place % len(style.SPARE)], theme)


def layers(found: Arrays, kind: str) -> list[str]:
    """The linear maps that have a measurement of a kind, from the input up."""
    names = [name.removeprefix(f"{kind}/") for name in found if name.startswith(f"{kind}/")]
    return sorted(names, key=lambda name: (name == "readout", name))
