"""Bootstrap fits of the parametric scaling law, many at once, against SciPy one by one.

`python scripts/benchmark.py fits [--samples 4000] [--points 240] [--rounds 3] [--output FILE]`

Both minimise the same sum of Huber losses over resampled points of fake runs. Ours includes the
fit itself, from its grid of starts, and in the first round compilation; SciPy's L-BFGS-B starts
each of a few samples from the optimum, as ours do.
"""

import pathlib
import time

import jax
import numpy as np
import scipy.optimize
import scipy.special
import side_by_side

from dfa_jax.scaling import Fit, Run, bootstrap, laws
from dfa_jax.train import records
from dfa_jax.train.cli import Parser
from dfa_jax.train.process import prepare_process

NUM_SCIPY = 20
DELTA = 1e-3


def main(arguments: list[str]) -> None:
    """Prints the seconds of all samples and of SciPy for as many; appends them to a file."""
    parser = Parser(prog="benchmark.py fits", description="Bootstrap fits of a scaling law.")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--points", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=pathlib.Path, help="JSON lines file to append to")
    options = parser.parse(arguments)
    prepare_process()
    runs = fake_runs(options.points)
    seconds, scipy_seconds = [], []
    for turn in range(options.rounds + 1):
        start = time.perf_counter()
        fit = bootstrap(jax.random.key(turn), "chinchilla", runs, num_samples=options.samples)
        seconds.append(time.perf_counter() - start)
        scipy_seconds.append(options.samples * plain(fit))
    ratios = np.array(scipy_seconds[1:]) / np.array(seconds[1:])
    found = {
        "samples": options.samples,
        "points": options.points,
        "first_seconds": round(seconds[0], 2),
        "seconds": round(float(np.median(seconds[1:])), 2),
        "scipy_seconds": round(float(np.median(scipy_seconds[1:])), 1),
        **side_by_side.quartiles(ratios),
    }
    print(f"{options.rounds} rounds; {records.environment()}")
    print(
        f"{options.samples} bootstrap fits of {options.points} points: {found['seconds']} s"
        f" (first, with compilation: {found['first_seconds']} s); SciPy's L-BFGS-B"
        f" {found['scipy_seconds']} s, ratio {side_by_side.shown(found, 1)}"
    )
    side_by_side.append(options.output, fits=found)


def fake_runs(number: int) -> list[Run]:
    """On the law that Besiroglu et al. (2024) fitted, with 1 % of noise."""
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(7.8, 10.2, number), 10 ** rng.uniform(9.7, 11.7, number)
    losses = (1.82 + 482 / N**0.348 + 2085 / D**0.366) * np.exp(0.01 * rng.normal(size=number))
    return [
        Run("backprop", f"size_{i}", int(n), int(d), 6 * n * d, float(loss), 0)
        for i, (n, d, loss) in enumerate(zip(N, D, losses, strict=True))
    ]


def plain(fit: Fit) -> float:
    """Seconds a sample of SciPy."""
    design = fit.law.design(laws.features_of(fit.law, fit.runs))
    log_losses = np.log([run.loss for run in fit.runs])
    rng = np.random.default_rng(0)

    def objective(theta, weights):
        logits = design @ theta
        shares = scipy.special.softmax(logits, axis=1)
        r = scipy.special.logsumexp(logits, axis=1) - log_losses
        gradient = weights * np.clip(r, -DELTA, DELTA) @ np.einsum("nk,nkp->np", shares, design)
        return weights @ scipy.special.huber(DELTA, r), gradient

    start = time.perf_counter()
    for _ in range(NUM_SCIPY):
        weights = rng.exponential(size=len(log_losses))
        scipy.optimize.minimize(
            objective,
            fit.theta,
            (weights,),
            method="L-BFGS-B",
            jac=True,
            options={"ftol": 1e-13, "gtol": 1e-10, "maxiter": 2000},
        )
    return (time.perf_counter() - start) / NUM_SCIPY
