"""Scaling laws: fitted to runs with their uncertainty, and compared between arms."""

from dfa_jax.scaling.fit import Fit, Interval, Optimum, bootstrap, compute_optimal, fit_law
from dfa_jax.scaling.laws import LAWS, Law
from dfa_jax.scaling.runs import Run

__all__ = [
    "LAWS",
    "Fit",
    "Interval",
    "Law",
    "Optimum",
    "Run",
    "bootstrap",
    "compute_optimal",
    "fit_law",
]
