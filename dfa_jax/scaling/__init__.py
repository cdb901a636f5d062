"""Scaling laws: compute, fits with their uncertainty, and what they say of two arms."""

from dfa_jax.scaling.fit import Fit, Interval, Optimum, bootstrap, compute_optimal, fit_law
from dfa_jax.scaling.frontier import IsoflopMinimum, isoflop_minima, lower_envelope
from dfa_jax.scaling.laws import LAWS, Law
from dfa_jax.scaling.runs import Run
from dfa_jax.scaling.verdict import Comparison, Outcome, Verdict, describe, judge

__all__ = [
    "LAWS",
    "Comparison",
    "Fit",
    "Interval",
    "IsoflopMinimum",
    "Law",
    "Optimum",
    "Outcome",
    "Run",
    "Verdict",
    "bootstrap",
    "compute_optimal",
    "describe",
    "fit_law",
    "isoflop_minima",
    "judge",
    "lower_envelope",
]
