"""Fake runs on planted laws, written in NumPy without the library's laws."""

import numpy as np

from dfa_jax.scaling import Run

PUBLISHED = {"E": 1.82, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366}
"""Besiroglu et al. (2024), arXiv 2404.10102: the replication's fit."""


def chinchilla_loss(N, D, *, E, A, B, alpha, beta):
    return E + A / N**alpha + B / D**beta


def final_losses(rng, number=240, noise=0.01, **law):
    """Networks of the range of Hoffmann et al., one point each; log-losses off by Gaussian noise."""
    N = np.exp(rng.uniform(np.log(7e7), np.log(1.6e10), number)).round()
    D = np.exp(rng.uniform(np.log(5e9), np.log(5e11), number)).round()
    losses = chinchilla_loss(N, D, **(law or PUBLISHED)) * np.exp(noise * rng.normal(size=number))
    return [
        Run("backprop", f"size_{i}", int(n), int(d), 6 * n * d, float(loss), 0)
        for i, (n, d, loss) in enumerate(zip(N, D, losses, strict=True))
    ]


def curves(rng, arm, law, *, num_sizes=6, num_seeds=3, offset=0.0, noise=0.0, flops_factor=6.0):
    """A ladder of training curves of a Chinchilla law; each curve has its own offset."""
    found = []
    for i, N in enumerate(np.geomspace(1e5, 1e7, num_sizes).round()):
        for seed in range(num_seeds):
            shift = offset * rng.normal()
            for D in np.geomspace(1e6, 1e9, 10).round():
                loss = chinchilla_loss(N, D, **law) * np.exp(shift + noise * rng.normal())
                found.append(
                    Run(arm, f"size_{i}", int(N), int(D), flops_factor * N * D, float(loss), seed)
                )
    return found


def compute_runs(flops, losses, arm="backprop"):
    """Points of a law of compute, one curve each."""
    return [
        Run(arm, f"size_{i}", 1, 1, float(C), float(L), 0)
        for i, (C, L) in enumerate(zip(flops, losses, strict=True))
    ]
