"""Gaussian averages by Gauss-Hermite quadrature: no formula of the library is used."""

import functools

import numpy as np
from scipy import special

FUNCTIONS = {
    "erf": (
        lambda x: special.erf(x / np.sqrt(2)),
        lambda x: np.sqrt(2 / np.pi) * np.exp(-(x**2) / 2),
    ),
    "linear": (lambda x: x, np.ones_like),
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(x.dtype)),
}
"""Activation functions and their derivatives, in NumPy."""


@functools.cache
def standard(n, num_nodes):
    """Points and weights of N(0, 1) in n dimensions."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    z = np.stack(np.meshgrid(*[nodes] * n, indexing="ij"), -1).reshape(-1, n)
    w = np.stack(np.meshgrid(*[weights / weights.sum()] * n, indexing="ij"), -1).prod(-1).ravel()
    return z, w


def gaussian(C, num_nodes):
    """Points `[point, n]` and weights `[point]` whose sums are averages over N(0, C)."""
    z, w = standard(len(C), num_nodes)
    eigenvalues, vectors = np.linalg.eigh(np.asarray(C, np.float64))
    return z @ (vectors * np.sqrt(np.maximum(eigenvalues, 0))).T, w


def velocity(op, setup, num_nodes=24):
    """The drift of Q, R and v: the averages of one online step, written from the step itself."""
    K = len(op.v)
    C = np.block([[np.asarray(op.Q), np.asarray(op.R)], [np.asarray(op.R).T, np.asarray(op.T)]])
    x, weights = gaussian(C, num_nodes)
    g, derivative = FUNCTIONS[setup.activation]
    v, A = np.asarray(op.v), np.asarray(op.v_teacher)
    F = v if setup.rule == "backprop" else np.asarray(op.feedback)
    error = g(x[:, K:]) @ A - g(x[:, :K]) @ v
    push = setup.learning_rate * F * derivative(x[:, :K])  # [point, K], times the error
    along = np.einsum("p,pk,pn->kn", weights * error, push, x)
    square = np.einsum("p,pi,pk->ik", weights * (error**2 + setup.label_noise**2), push, push)
    kept, kept_v = (
        setup.learning_rate * setup.weight_decay,
        setup.second_learning_rate * setup.weight_decay,
    )
    dQ = along[:, :K] + along[:, :K].T + square - 2 * kept * np.asarray(op.Q)
    dv = setup.second_learning_rate * (weights * error) @ g(x[:, :K]) - kept_v * v
    return dQ, along[:, K:] - kept * np.asarray(op.R), dv
