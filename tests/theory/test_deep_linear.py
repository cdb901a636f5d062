"""Deep linear networks: the structure theorem, and what follows for weight alignment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfa_jax.errors import InputError
from dfa_jax.theory import deep_linear

step = jax.jit(deep_linear.alignment_step)
weights = jax.jit(deep_linear.weights)


@st.composite
def problems(draw):
    """A depth, widths, numbers of inputs and outputs, a batch size, a seed."""
    depth = draw(st.integers(1, 4))
    widths = draw(st.lists(st.integers(2, 9), min_size=depth, max_size=depth))
    return widths, *(draw(st.integers(1, 5)) for _ in range(3)), draw(st.integers(0, 999))


@settings(max_examples=6, derandomize=True, deadline=None)
@given(problems())
def test_structure_theorem(problem):
    """Exact equivalence: weights trained from zero are `F_l A_l F_{l-1}^T`, for any shapes and data.

    The step of the weights is written in NumPy here, so the library's own is tested with it.
    """
    widths, C, D, batch, seed = problem
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        F = [rng.normal(size=(n, C)) / np.sqrt(n) for n in widths]
        A = deep_linear.zero_alignment(jax.device_put(F), D)
        W = [np.zeros((n, m)) for n, m in zip([*widths, C], [D, *widths], strict=True)]
        for _ in range(15):
            x, y = rng.normal(size=(batch, D)), rng.normal(size=(batch, C))
            A = step(A, F, x, y, 0.02)
            h = [x]
            for matrix in W:
                h.append(h[-1] @ matrix.T)
            e = h[-1] - y
            sent = [e @ f.T for f in F] + [e]
            W = [w - 0.02 * d.T @ b for w, d, b in zip(W, sent, h[:-1], strict=True)]
        found = weights(A, F)
        for ours, expected in zip(found, W, strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_library_step_is_the_same(x64):
    """Exact equivalence: `train_step` on the theorem's weights is the recursion's step."""
    rng = np.random.default_rng(0)
    F = jax.device_put([rng.normal(size=(n, 3)) / n**0.5 for n in (8, 6)])
    A, train_step = deep_linear.zero_alignment(F, 5), jax.jit(deep_linear.train_step)
    for _ in range(10):
        x, y = rng.normal(size=(4, 5)), rng.normal(size=(4, 3))
        W = train_step(weights(A, F), F, x, y, 0.05)
        A = step(A, F, x, y, 0.05)
    for ours, expected in zip(weights(A, F), W, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_feedback_alignment_is_a_case(x64):
    """Independent implementation: a chain of matrices B_l in NumPy gives the weights of `F_l`."""
    rng = np.random.default_rng(1)
    widths, C, D = (9, 7, 8), 3, 5
    B = [rng.normal(size=(n, m)) / n**0.5 for n, m in zip(widths, [*widths[1:], C], strict=True)]
    F = jax.jit(deep_linear.direct_from_chain)(B)
    A = deep_linear.zero_alignment(F, D)
    W = [np.zeros((n, m)) for n, m in zip([*widths, C], [D, *widths], strict=True)]
    for _ in range(40):
        x, y = rng.normal(size=(2, D)), rng.normal(size=(2, C))
        A = step(A, F, x, y, 0.02)
        h = [x]
        for matrix in W:
            h.append(h[-1] @ matrix.T)
        deltas = [h[-1] - y]
        for b in reversed(B):
            deltas.insert(0, deltas[0] @ b.T)
        W = [w - 0.02 * d.T @ b for w, d, b in zip(W, deltas, h[:-1], strict=True)]
    for ours, expected in zip(weights(A, F), W, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-12)


def orthonormal(rng, n, C):
    """Feedback with `F^T F = 1`."""
    return jax.device_put(np.linalg.qr(rng.normal(size=(n, C)))[0])


def test_trace_formula(x64):
    """Exact equivalence: with `F^T F = 1`, the measured alignment is `Tr A / (sqrt C |A|)`."""
    rng = np.random.default_rng(2)
    F = [orthonormal(rng, n, 3) for n in (20, 15, 18)]
    A = [rng.normal(size=(3, m)) for m in (6, 3, 3, 3)]
    measured = jax.jit(deep_linear.weight_alignments)(weights(A, F), F)
    formula = jax.jit(deep_linear.trace_alignment)
    for found, matrix in zip(measured, A[1:], strict=True):
        np.testing.assert_allclose(found, formula(matrix), rtol=1e-12)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_exponents(x64, depth):
    """Closed form: modes of A_l grow as `s^(2^(l-1))` early, and end at `s^(2^(l-1) / (2^L - 1))`.

    Gradient flow with `F^T F = 1` and white inputs, by small steps on population gradients (a batch
    of orthogonal inputs): the exponent is the slope between two modes, to 2 %, where steps of this
    size leave 1 % at most.
    """
    s = np.array([1.0, 0.4])
    F = jax.device_put([np.eye(2)] * (depth - 1))
    x, y = jax.device_put((np.eye(2), np.diag(s)))
    rate = 0.002

    @jax.jit
    def run(A, number):
        return jax.lax.fori_loop(
            0, number, lambda _, A: deep_linear.alignment_step(A, F, x, y, rate), A
        )

    def slopes(A):
        return [np.log(a[1, 1] / a[0, 0]) / np.log(s[1] / s[0]) for a in map(np.asarray, A)]

    early = run(deep_linear.zero_alignment(F, 2), 40)
    late = run(early, 300_000)
    for layer in range(1, depth + 1):
        expected = deep_linear.early_exponent(layer)
        np.testing.assert_allclose(slopes(early)[layer - 1], expected, rtol=0.02)
        expected = deep_linear.converged_exponent(layer, depth)
        np.testing.assert_allclose(slopes(late)[layer - 1], expected, rtol=0.02)


def test_published_predictions(x64):
    """Independent implementation: predictions that another program computed, to three digits."""
    s = jnp.array([1.0, 0.2])
    early = [deep_linear.predicted_alignment(s, deep_linear.early_exponent(n)) for n in (2, 3, 4)]
    np.testing.assert_allclose(early, [0.735, 0.708, 0.707], atol=5e-4)
    late = [
        deep_linear.predicted_alignment(s, deep_linear.converged_exponent(n, 4)) for n in (2, 3, 4)
    ]
    np.testing.assert_allclose(late, [0.994, 0.978, 0.927], atol=5e-4)


@pytest.mark.parametrize("shapes", [[], [(4, 2), (5, 3)]])
def test_feedback_refused(shapes):
    """Documented contract: one matrix a hidden layer, one number of outputs."""
    with pytest.raises(InputError, match="one matrix"):
        deep_linear.zero_alignment([jnp.zeros(shape) for shape in shapes], 3)
