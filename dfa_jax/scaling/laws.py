r"""Scaling laws: a loss as a sum of powers, in logarithms.

Every law here is `L = sum_k exp(t_k . theta)`, where `t_k` is linear in the logarithms of
parameters, tokens or FLOPs, so that its logarithm is a log-sum-exp,

    log L = log sum_k exp(t_k . theta),

which neither over- nor underflows and needs no bounds: `theta` is unconstrained, and the floor and
the coefficients are positive whatever it is. Source of the form: Hoffmann et al. (2022), arXiv
2203.15556, appendix D.3.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from dfa_jax.errors import InputError, unknown
from dfa_jax.scaling.runs import Run

Terms = Callable[[Any], list[list[Any]]]
"""From the features' logarithms, one array each, to rows `t_k` of arrays or numbers."""


@dataclasses.dataclass(frozen=True)
class Law:
    """A law of the loss, as a value.

    Attributes:
        name: in `LAWS`.
        equation: as people write it.
        features: fields of a `Run` that it reads.
        coordinates: names of the unconstrained `theta`.
        parameters: names of the numbers that people quote, as many.
        terms: the rows `t_k`, from the logarithms of the features.
        quoted: from `theta` to the quoted numbers.
        grid: starting values of each coordinate.
        num_levels: different values that each feature needs for the law to be identified.
    """

    name: str
    equation: str
    features: tuple[str, ...]
    coordinates: tuple[str, ...]
    parameters: tuple[str, ...]
    terms: Terms
    quoted: Callable[[Any], list[Any]]
    grid: tuple[tuple[float, ...], ...]
    num_levels: int

    def design(
        self, features: Float[np.ndarray, "points features"]
    ) -> Float[np.ndarray, "points terms params"]:
        """The rows `t_k` of every point, from positive features."""
        logs = [np.log(column) for column in features.T]
        ones = np.ones(len(features))
        return np.stack(
            [np.stack([entry * ones for entry in row], -1) for row in self.terms(logs)], 1
        )

    @functools.partial(jax.jit, static_argnames="self")
    def log_loss(
        self, theta: Float[Array, " params"], design: Float[Array, "points terms params"]
    ) -> Float[Array, " points"]:
        """`log L` of every point."""
        return logsumexp(design @ theta, axis=-1)

    @functools.partial(jax.jit, static_argnames="self")
    def named(self, theta: Float[Any, "*many params"]) -> Float[Array, "*many params"]:
        """The numbers that people quote, in the order of `parameters`."""
        return jnp.stack(self.quoted(jnp.moveaxis(jnp.asarray(theta), -1, 0)), -1)

    def starts(self) -> Float[np.ndarray, "starts params"]:
        """Every combination of the grid's values."""
        return np.array(list(itertools.product(*self.grid)))


def _steps(low: float, high: float, step: float) -> tuple[float, ...]:
    return tuple(float(x) for x in np.arange(low, high + step / 2, step))


POWER_LAW = Law(
    name="power_law",
    equation="L = (C_c / C)^alpha",
    features=("flops",),
    coordinates=("c", "alpha"),  # c = alpha log C_c, so that log L = c - alpha log C
    parameters=("C_c", "alpha"),
    terms=lambda logs: [[1, -logs[0]]],
    quoted=lambda theta: [jnp.exp(theta[0] / theta[1]), theta[1]],
    grid=((5.0,), (0.05, 0.1)),  # the objective is convex: any start will do
    num_levels=2,
)
"""Kaplan et al. (2020), arXiv 2001.08361: a straight line in logarithms."""

POWER_LAW_WITH_FLOOR = Law(
    name="power_law_with_floor",
    equation="L = E + (C_c / C)^alpha",
    features=("flops",),
    coordinates=("e", "c", "alpha"),
    parameters=("E", "C_c", "alpha"),
    terms=lambda logs: [[1, 0, 0], [0, 1, -logs[0]]],
    quoted=lambda theta: [jnp.exp(theta[0]), jnp.exp(theta[1] / theta[2]), theta[2]],
    # Chinchilla's grid; FLOPs span about twice the decades of parameters or tokens: half the slope
    grid=(_steps(-1, 1, 0.5), _steps(0, 25, 2.5), _steps(0, 1, 0.1)),
    num_levels=3,
)
"""The same above an irreducible loss E, nats per token."""

CHINCHILLA = Law(
    name="chinchilla",
    equation="L = E + A / N^alpha + B / D^beta",
    features=("num_params", "num_tokens"),
    coordinates=("e", "a", "b", "alpha", "beta"),
    parameters=("E", "A", "B", "alpha", "beta"),
    terms=lambda logs: [[1, 0, 0, 0, 0], [0, 1, 0, -logs[0], 0], [0, 0, 1, 0, -logs[1]]],
    quoted=lambda theta: [*(jnp.exp(theta[i]) for i in range(3)), theta[3], theta[4]],
    grid=(_steps(-1, 1, 0.5), *[_steps(0, 25, 5)] * 2, *[_steps(0, 2, 0.5)] * 2),
    num_levels=3,
)
"""Hoffmann et al. (2022), arXiv 2203.15556, and their grid of starts."""

LAWS = {law.name: law for law in (POWER_LAW, POWER_LAW_WITH_FLOOR, CHINCHILLA)}
"""Every law by its name."""


def get(law: Law | str) -> Law:
    """A law itself, or the one of that name.

    >>> get("power_law").parameters
    ('C_c', 'alpha')
    """
    if isinstance(law, Law):
        return law
    if law not in LAWS:
        raise InputError(unknown("scaling law", law, LAWS))
    return LAWS[law]


def features_of(law: Law, runs: Sequence[Run]) -> Float[np.ndarray, "points features"]:
    """What a law reads of each run."""
    return np.array([[float(getattr(run, name)) for name in law.features] for run in runs])


def jacobian_of_named(
    law: Law, theta: Float[np.ndarray, " params"]
) -> Float[np.ndarray, "params params"]:
    """`d quoted_i / d theta_j`, for covariances."""
    with jax.enable_x64(True):
        return np.asarray(_jacobian(law, theta))


@functools.partial(jax.jit, static_argnames="law")
def _jacobian(law: Law, theta: Any) -> Array:
    return jax.jacfwd(law.named)(theta)
