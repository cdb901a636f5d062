"""The equations of motion: against quadrature of the online step, and against recorded solutions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax import theory
from dfa_jax.errors import InputError
from dfa_jax.theory import TeacherStudent
from tests.theory import quadrature
from tests.theory.settings import drawn, fixture

FAST = TeacherStudent(learning_rate=0.2, second_learning_rate=0.2)


@pytest.mark.parametrize("rule", ["direct_feedback_alignment", "backprop"])
@pytest.mark.parametrize("activation", ["erf", "linear"])
def test_velocity_is_the_mean_step(x64, activation, rule):
    """Independent implementation: the online step itself, averaged by Gauss-Hermite quadrature.

    With noise, decay and two rates, so that every term is there.
    """
    setup = TeacherStudent(activation, rule, 0.3, 0.7, label_noise=0.5, weight_decay=0.2)
    found = jax.jit(theory.velocity)(fixture(), setup)
    for ours, expected in zip(
        (found.Q, found.R, found.v), quadrature.velocity(fixture(), setup), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=2e-6)
    for name in ("T", "v_teacher", "feedback"):
        assert not getattr(found, name).any()


@pytest.mark.slow
def test_relu_velocity_is_the_mean_step(x64):
    """Statistical test: the step averaged over 2,000,000 inputs, |z| below 4.5 for all entries.

    The standard deviation of each mean is about 1e-3 of the largest drift.
    """
    setup = TeacherStudent("relu", learning_rate=0.3, second_learning_rate=0.7, label_noise=0.5)
    op = fixture()
    C = np.asarray(theory.covariance(op))
    x = np.random.default_rng(0).normal(size=(2_000_000, 4)) @ np.linalg.cholesky(C).T
    g, d = quadrature.FUNCTIONS["relu"]
    error = g(x[:, 2:]) @ np.ones(2) - g(x[:, :2]) @ np.asarray(op.v)
    push = 0.3 * np.asarray(op.feedback) * d(x[:, :2])
    along = (error[:, None] * push)[:, :, None] * x[:, None, :]
    spread = push[:, :, None] * push[:, None, :] * (error**2 + 0.25)[:, None, None]
    steps = {
        "Q": along[:, :, :2] + along[:, :, :2].transpose(0, 2, 1) + spread,
        "R": along[:, :, 2:],
        "v": 0.7 * error[:, None] * g(x[:, :2]),
    }
    found = jax.jit(theory.velocity)(op, setup)
    for name, sample in steps.items():
        z = (getattr(found, name) - sample.mean(0)) / (sample.std(0) / len(x) ** 0.5)
        assert np.abs(z).max() < 4.5, name


def saad_solla_error(Q, R, T):
    """`e_g` of the soft committee machine, as Saad and Solla (1995) write it."""

    def part(inner, first, second):
        return np.arcsin(inner / np.sqrt((1 + first)[:, None] * (1 + second)[None])).sum()

    q, t = np.diag(Q), np.diag(T)
    return (part(Q, q, q) + part(T, t, t) - 2 * part(R, q, t)) / np.pi


def test_soft_committee_machine(x64):
    """Closed form: backpropagation with v = A = 1 fixed is Saad and Solla's (1995) system.

    Their error, their drift of R (equation for `dR_in / d alpha`), and a second layer that stays.
    """
    setup = TeacherStudent(rule="backprop", learning_rate=0.4, second_learning_rate=0.0)
    op = fixture()._replace(v=jnp.ones(2))
    Q, R, T = (np.asarray(a) for a in (op.Q, op.R, op.T))
    found = jax.jit(theory.velocity)(op, setup)
    for i in range(2):
        for n in range(2):
            one = 1 + Q[i, i]
            terms = [
                (T[n, m] * one - R[i, n] * R[i, m]) / np.sqrt(one * (1 + T[m, m]) - R[i, m] ** 2)
                for m in range(2)
            ] + [
                -(R[j, n] * one - R[i, n] * Q[i, j]) / np.sqrt(one * (1 + Q[j, j]) - Q[i, j] ** 2)
                for j in range(2)
            ]
            np.testing.assert_allclose(
                found.R[i, n], 0.4 * 2 / np.pi / one * sum(terms), rtol=1e-12
            )
    assert not found.v.any()
    np.testing.assert_allclose(
        theory.generalization_error(op, "erf"), saad_solla_error(Q, R, T), rtol=1e-12
    )


@pytest.mark.parametrize("step_size", [None, 0.1], ids=["adaptive", "fixed"])
def test_recorded_solution(x64, step_size):
    """Independent implementation: another program's solution, to 1e-4 (of its six digits)."""
    times = np.array([0.0, 1.0, 10.0, 100.0])
    found = theory.solve(fixture(), FAST, times, step_size=step_size)
    errors = theory.generalization_error(found, "erf")
    np.testing.assert_allclose(errors, [0.375606, 0.347672, 0.177682, 0.016143], atol=1e-5)
    v = [[0.38250, -0.27951], [0.50668, -0.30381], [0.97275, -0.53919]]
    np.testing.assert_allclose(found.v[1:], v, atol=1e-4)
    Q = [[0.99032, 0.07454, 0.88987], [1.15328, -0.07810, 0.92233], [1.13644, -0.59390, 0.94853]]
    np.testing.assert_allclose(found.Q[1:].reshape(3, 4)[:, [0, 1, 3]], Q, atol=1e-4)
    R = [0.16146, 0.01520, -0.01724, 0.04010]
    np.testing.assert_allclose(found.R[1].reshape(-1), R, atol=1e-4)
    R = [0.72603, 0.70793, -0.53304, -0.56276]
    np.testing.assert_allclose(found.R[3].reshape(-1), R, atol=1e-4)


@pytest.mark.nightly
def test_recorded_solution_to_the_end(x64):
    """As above, through the plateau and past it."""
    found = theory.solve(fixture(), FAST, np.array([0.0, 500.0, 1000.0]))
    errors = theory.generalization_error(found, "erf")
    np.testing.assert_allclose(errors[1:], [0.009972, 0.000110], atol=2e-6)
    np.testing.assert_allclose(found.v[2], [1.07630, -0.94006], atol=1e-4)
    np.testing.assert_allclose(theory.overlap(found)[2], 0.9843, atol=1e-4)


@pytest.mark.slow
def test_gradient_by_the_learning_rate(x64):
    """Independent implementation: finite differences of the solution by eta and by Q_11."""
    times = np.array([0.0, 2.0])

    def error(rate, shift):
        setup = dataclasses.replace(FAST, learning_rate=rate)
        op = fixture()
        op = op._replace(Q=op.Q.at[0, 0].add(shift))
        return theory.generalization_error(theory.solve(op, setup, times), "erf")[-1]

    error = jax.jit(error)
    slopes = jax.jit(jax.grad(error, (0, 1)))(0.2, 0.0)
    for slope, (dx, dy) in zip(slopes, [(1e-4, 0), (0, 1e-4)], strict=True):
        difference = (error(0.2 + dx, dy) - error(0.2 - dx, -dy)) / 2e-4
        np.testing.assert_allclose(slope, difference, rtol=1e-5)


@pytest.mark.nightly
def test_many_at_once(x64):
    """Exact equivalence: under `vmap` each start gives what it gives alone."""
    times = np.array([0.0, 1.0, 5.0])
    starts = [drawn(seed, 50) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    together = jax.jit(jax.vmap(lambda op: theory.solve(op, FAST, times, step_size=0.2)))(stacked)
    alone = theory.solve(starts[1], FAST, times, step_size=0.2)
    for ours, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(ours[1], expected, rtol=1e-10, atol=1e-12)


def test_alignment_comes_before_memory(x64):
    """Closed form: from zero, v is parallel to F while the error has hardly moved.

    By expansion in t, with `T = 1`, `A = 1`: `R_kn = (2 / pi) (1 / sqrt 2) eta t F_k` and
    `v_k = (M / pi^2) eta^2 t^2 F_k`; the error starts from M / 6.
    """
    zero = jnp.zeros((2, 2))
    F = jnp.array([0.9, -1.3])
    op = fixture()._replace(Q=zero, R=zero, v=jnp.zeros(2), feedback=F)
    times = np.array([0.0, 0.01, 1.0, 2.0])
    found = theory.solve(op, TeacherStudent(), times)
    errors = theory.generalization_error(found, "erf")
    np.testing.assert_allclose(errors[0], 1 / 3, rtol=1e-12)
    early = 2 / np.pi / np.sqrt(2) * 0.1 * 0.01 * np.asarray(F)
    np.testing.assert_allclose(found.R[1], np.stack([early, early], 1), rtol=1e-2)
    np.testing.assert_allclose(found.v[1], 2 / np.pi**2 * (0.1 * 0.01) ** 2 * F, rtol=1e-2)
    near_start = np.abs(errors / errors[0] - 1) < 0.01
    assert near_start[2]
    assert (theory.overlap(found)[1:][near_start[1:]] > 0.999).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"R": np.zeros((2, 3))}, r"R has shape \(2, 3\).*K = 2.*M = 2.*it is \(2, 2\)"),
        ({"feedback": np.zeros(3)}, r"feedback has shape \(3,\).*it is \(2,\)"),
        ({"v": np.zeros((2, 1))}, r"v has shape \(2, 1\).*expected \[K\]"),
        ({"Q": np.array([[1.0, 0.5], [0.2, 1.0]])}, "not symmetric"),
        ({"Q": np.array([[1.0, 2.0], [2.0, 1.0]])}, "eigenvalue -1.*positive semi-definite"),
        ({"T": np.array([[1.0, np.nan], [0.0, 1.0]])}, "not finite"),
    ],
)
def test_order_parameters_of_no_network(x64, changes, message):
    """Documented contract: what is wrong, and the remedy."""
    op = fixture()._replace(**{name: jnp.asarray(a) for name, a in changes.items()})
    with pytest.raises(InputError, match=message):
        theory.solve(op, FAST, np.array([0.0, 1.0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "tanh"}, "'tanh'"),
        ({"rule": "shallow"}, "'shallow'"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1"),
        ({"label_noise": float("nan")}, "label_noise is nan"),
    ],
)
def test_settings_refused(changes, message):
    """Documented contract: the field, its value, and what there is."""
    with pytest.raises(InputError, match=message):
        dataclasses.replace(FAST, **changes)


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.0], [2.0, 1.0], [-1.0, 1.0]])
def test_times_refused(x64, times):
    """Documented contract: times ascend from 0 on."""
    with pytest.raises(InputError, match="ascending"):
        theory.solve(fixture(), FAST, np.array(times))
