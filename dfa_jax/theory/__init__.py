"""The theory of *Align, then memorise*: solved, simulated, and in closed form."""

from dfa_jax.theory.ode import solve, velocity
from dfa_jax.theory.order_parameters import (
    OrderParameters,
    covariance,
    generalization_error,
    overlap,
)
from dfa_jax.theory.setup import TeacherStudent
from dfa_jax.theory.simulation import simulate
from dfa_jax.theory.weights import Weights, draw_weights, from_weights, simulate_weights

__all__ = [
    "OrderParameters",
    "TeacherStudent",
    "Weights",
    "covariance",
    "draw_weights",
    "from_weights",
    "generalization_error",
    "overlap",
    "simulate",
    "simulate_weights",
    "solve",
    "velocity",
]
