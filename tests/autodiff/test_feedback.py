"""`project` and `collect`: direct feedback for a forward pass of the user's own."""

import jax
import jax.numpy as jnp
import numpy as np

from dfa_jax.autodiff import collect, project
from tests import helpers


def segment_a(w, x):
    return jnp.tanh(x @ w["in"]) + x @ w["skip"]


def segment_b(w, h):
    return h + jax.nn.gelu(h @ w["up"]) @ w["down"]


def segment_c(w, h):
    g = jnp.sin(h @ w["mix"])
    return h * g + g


def readout(w, h):
    return (h + jnp.tanh(h)) @ w["out"]


SEGMENTS = {"a": segment_a, "b": segment_b, "c": segment_c}


def skip_model():
    """Weights, input, targets and feedback of three segments with skip connections inside."""
    shapes = {
        "a": {"in": (5, 6), "skip": (5, 6)},
        "b": {"up": (6, 9), "down": (9, 6)},
        "c": {"mix": (6, 6)},
        "readout": {"out": (6, 3)},
    }
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    like = jax.tree.map(lambda shape: np.zeros(shape), shapes, is_leaf=is_shape)
    feedback = {site: np.zeros((3, 6)) for site in SEGMENTS}
    x, targets = np.zeros((4, 2, 5)), np.zeros((4, 2, 3))
    return helpers.normals((like, x, targets, feedback), 0, 0.5)


def loss(y, targets):
    return jnp.exp(-jnp.square(y - targets)).mean()


def test_collector_equals_one_vjp_per_segment(x64):
    """Independent implementation: one `jax.vjp` per segment, each fed `e B` by hand, to 1e-12.

    The collector is the whole of DFA for users without Flax; segments hold skips and two batch axes.
    """
    w, x, targets, feedback = skip_model()

    @jax.jit
    @jax.grad
    def collected(w):
        h, activities = x, {}
        for site, segment in SEGMENTS.items():
            activities[site] = segment(w[site], h)
            h = jax.lax.stop_gradient(activities[site])
        return loss(collect(readout(w["readout"], h), activities, feedback), targets)

    @jax.jit
    def explicit(w):
        h, pulls = x, {}
        for site, segment in SEGMENTS.items():
            h, pulls[site] = jax.vjp(lambda w, h=h, segment=segment: segment(w, h), w[site])
        y, pull_readout = jax.vjp(lambda w: readout(w, h), w["readout"])
        e = jax.grad(loss)(y, targets)
        grads = {s: pulls[s](jnp.einsum("bte,ed->btd", e, feedback[s]))[0] for s in SEGMENTS}
        return grads | {"readout": pull_readout(e)[0]}

    helpers.assert_close(collected(w), explicit(w), 1e-12)


def test_collector_without_a_cut_adds_the_true_error(x64):
    """Closed form: the collector is linear: without `stop_gradient` a site gets `dL/dh + e B`."""
    w, x, targets, feedback = skip_model()

    def through(h, B):
        return loss(collect(readout(w["readout"], h), {"a": h}, {"a": B}), targets)

    @jax.jit
    def run(B):
        h = segment_a(w["a"], x)
        true = jax.grad(lambda h: loss(readout(w["readout"], h), targets))(h)
        e = jax.grad(loss)(readout(w["readout"], h), targets)
        return jax.grad(through, argnums=(0, 1))(h, B), true + e @ B

    (both, of_feedback), expected = run(feedback["a"])
    helpers.assert_close(both, expected, 1e-12)
    assert np.abs(of_feedback).max() == 0  # B is fixed: it gets no gradient


def test_collector_casts_errors_to_each_activity():
    """Documented contract: the projection runs in B's precision, the error arrives in the activity's."""
    h = jnp.ones((4, 6), jnp.bfloat16)
    e, B = helpers.normals((np.zeros((4, 3)), np.zeros((3, 6))), 0)
    y, pull = jax.vjp(lambda h: collect(jnp.zeros((4, 3), jnp.bfloat16), {"h": h}, {"h": B}), h)
    (delta,) = pull(e.astype(y.dtype))
    assert delta.dtype == jnp.bfloat16
    exact = np.asarray(e.astype(jnp.bfloat16), float) @ np.asarray(B, float)
    np.testing.assert_allclose(np.asarray(delta, float), exact, rtol=2**-8)


def test_projection_is_the_einsum_of_its_shapes(x64):
    """Independent implementation: `np.einsum` for plain, convolutional and stacked feedback."""
    error = helpers.normals(np.zeros((4, 2, 3)), 0)
    for shape, num_stack, formula in [
        ((3, 6), 0, "bte,ed->btd"),
        ((3, 5, 4, 2), 0, "bte,ehwc->bthwc"),
        ((7, 3, 6), 1, "bte,led->lbtd"),
        ((2, 7, 3, 6), 2, "bte,kled->klbtd"),
    ]:
        B = helpers.normals(np.zeros(shape), 1)
        expected = np.einsum(formula, np.asarray(error), np.asarray(B))
        np.testing.assert_allclose(project(error, B, num_stack), expected, rtol=1e-12, atol=1e-12)
