"""What models and losses of others' were seen to break, each with the oracle that saw it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dfa_jax.errors import InputError, SiteError
from dfa_jax.models import MLP, from_linen
from dfa_jax.rules import (
    RULES,
    ActivityForwardGradient,
    Backprop,
    DirectRandomTargetProjection,
    FeedbackAlignment,
    KolenPollack,
    init,
    value_and_grad,
)
from dfa_jax.train import init_state, train_step
from dfa_jax.types import Batch
from tests import helpers

KEY = jax.random.key(0)


class Modulated(nn.Module):
    """Kernels that inputs mask, shift or scale before they are used."""

    @nn.compact
    def __call__(self, x):
        data, mask = x
        h = jnp.tanh(nn.Dense(6, name="first")(data))
        W, V = (self.param(n, nn.initializers.normal(0.5), (6, 6)) for n in ("W", "V"))
        h = jnp.tanh(h @ (W * mask))
        h = jnp.tanh(h @ (V / jnp.square(data).mean() + mask))
        return nn.Dense(3, name="readout")(h)


def test_kernels_that_inputs_modulate_are_swapped(x64):
    """Independent implementation: the layers written out, with the same mask and scale on B."""
    x, labels = helpers.images()
    mask = jax.device_put(np.random.default_rng(1).integers(0, 2, (6, 6)).astype(float))
    batch = Batch((x, mask), labels)
    case = helpers.made(Modulated(), "readout:input", batch)
    assert list(case.model.linear_maps) == ["first", "W", "V", "readout"]
    params, B = helpers.started(FeedbackAlignment(), case)

    def through(h, weight, other):
        return jax.lax.stop_gradient(h) @ weight + h @ other - jax.lax.stop_gradient(h @ other)

    @jax.jit
    def by_hand(params, batch):
        (data, mask), labels = batch

        def objective(params):
            first, top = params["first"], params["readout"]
            h = jnp.tanh(data @ first["kernel"] + first["bias"][None])
            h = jnp.tanh(through(h, params["W"] * mask, B["W"] * mask))
            scale = jnp.square(data).mean()
            h = jnp.tanh(through(h, params["V"] / scale + mask, B["V"] / scale + mask))
            logits = through(h, top["kernel"], B["readout"]) + top["bias"][None]
            return helpers.LOSS(logits, labels).mean()

        return jax.grad(objective)(params)

    # B stays fixed in the term `h @ B`: its gradient by the parameters is that of W alone.
    found = helpers.estimate(FeedbackAlignment(), case, params, B).grads
    helpers.assert_close(found, by_hand(params, batch), 1e-11)


@pytest.mark.parametrize("sharing", ["pairs", "batch"])
def test_noise_is_not_shared_where_slopes_are_not_told_apart(sharing):
    """Exact equality with noise of one's own: one slope for all examples says nothing of noise that
    they share; the mean would be the sum of all examples' gradients."""
    case = helpers.mlp()

    def scalar(outputs, targets):
        return helpers.LOSS(outputs, targets).mean()

    shared, own = (
        helpers.estimate(ActivityForwardGradient(sharing=s), case, case.params, (), loss=scalar)
        for s in (sharing, "none")
    )
    helpers.assert_identical(shared.grads, own.grads)


class Mapped(nn.Module):
    """Kernels at an equalised rate: what rides in the parameters is doubled too."""

    @nn.compact
    def __call__(self, x):
        def twice(variables):
            return jax.tree.map(lambda w: 2 * w, variables)

        kind = nn.map_variables(nn.Dense, "params", twice, init=self.is_initializing())
        return nn.Dense(3, name="readout")(jnp.tanh(kind(4, name="inside")(x)))


def test_a_site_inside_of_map_variables_is_refused():
    """Documented contract: a perturbation there would be mapped with the parameters, and the slope be
    twice what it is."""
    case = helpers.made(Mapped(), "inside", helpers.images())
    with pytest.raises(SiteError, match="'inside' is inside of `nn.map_variables`.*outside"):
        helpers.estimate(ActivityForwardGradient(), case, case.params, ())


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = True):
        h = nn.SpectralNorm(nn.Dense(6, name="normed"))(x, update_stats=train)
        return nn.Dense(3, name="readout")(jnp.tanh(h))


def test_a_rules_own_parameters_are_hidden_from_the_module():
    """Exact equivalence: Kolen-Pollack with `B` and feedback alignment with it, beside a wrapper that
    looks at all parameters of its layer."""
    batch = helpers.images()
    model = from_linen(Spectral(), "readout:input", batch.inputs)
    mirror = KolenPollack(decay=0.0)
    start = init(mirror, model, helpers.LOSS, KEY, batch)
    feedback = mirror.feedback(KEY, model, start.params, ())
    plain = init(Backprop(), model, helpers.LOSS, KEY, batch)

    @jax.jit
    def both(batch):
        by_mirror = value_and_grad(mirror, model, helpers.LOSS)(*start, batch, KEY)[1]
        fixed = value_and_grad(FeedbackAlignment(), model, helpers.LOSS)
        return by_mirror, fixed(plain.params, feedback, plain.model_state, batch, KEY)[1]

    found, expected = both(batch)
    for path, leaf in jax.tree.leaves_with_path(expected):
        here = found
        for part in path:
            here = here[part.key]
        np.testing.assert_allclose(here, leaf, rtol=1e-5, atol=1e-7)


def test_parts_of_a_loss_in_half_precision():
    """Exact equivalence: 512 parts of four examples and the whole batch. A sum of weights in bfloat16
    stops at 256, and the update was twice as long."""
    batch = helpers.images(num=2048)
    model = from_linen(MLP((4,), 3), "layer_0", batch.inputs)

    def half(outputs, targets):
        return helpers.LOSS(outputs, targets).astype(jnp.bfloat16)

    parts = {"model": model, "rule": Backprop(), "loss_fn": half, "tx": optax.sgd(1.0)}

    @jax.jit
    def run(key, batch):
        state = init_state(key, batch, **parts)
        return [train_step(state, batch, num_parts=n, **parts)[0].params for n in (1, 512)]

    whole, many = run(KEY, batch)
    helpers.assert_close(many, whole, 1e-3)


class Counting(nn.Module):
    """Counts its passes, in evaluation too."""

    @nn.compact
    def __call__(self, x):
        passes = self.variable("counters", "passes", lambda: jnp.zeros((), jnp.int32))
        passes.value += 1
        return nn.Dense(3, name="readout")(jnp.tanh(nn.Dense(4, name="first")(x)))


def test_a_state_that_always_moves_is_undone_in_evaluation():
    """Closed form: two steps count two, whatever is evaluated between them."""
    batch = helpers.images()
    model = from_linen(Counting(), "first", batch.inputs)
    start = init(Backprop(), model, helpers.LOSS, KEY, batch)
    estimate = jax.jit(value_and_grad(Backprop(), model, helpers.LOSS))
    state, begun = start.model_state, int(start.model_state["counters"]["passes"])
    for _ in range(2):
        (_, aux), _ = estimate(start.params, (), state, batch, KEY)
        model.apply(start.params, batch.inputs, state=state)
        state = aux.model_state
    assert int(state["counters"]["passes"]) == begun + 2


class Latents(nn.Module):
    """A learned array as long as the batch, and time in front of the examples."""

    @nn.compact
    def __call__(self, x):
        start = self.param("start", nn.initializers.normal(1.0), (4, 3))
        latents = jnp.tanh(nn.Dense(3, name="latents")(start))
        return nn.Dense(3, name="readout")(jnp.tanh(nn.Dense(3, name="first")(x)) @ latents.T)


def test_noise_of_an_array_without_examples_hears_of_all_of_them():
    """Closed form: with signs for noise, `<dL/dh, delta> = |delta|^2 / size` over the whole array: one
    slope for all of it, that of the whole loss, and not an example's for each row."""
    batch = helpers.images(num=4, shape=(5,))
    case = helpers.made(Latents(), ["latents", "first"], batch)
    assert [place.has_examples for place in case.model.places] == [False, True]
    rule = ActivityForwardGradient(noise="rademacher")
    sent = helpers.estimate(rule, case, case.params, ()).errors["latents"]
    assert np.unique(np.abs(np.asarray(sent)).round(6)).size == 1


@pytest.mark.parametrize(
    ("targets", "num_outputs", "words"),
    [
        ([0, 3, 1, 2], 3, "a target is 3, and the outputs have 3 classes"),
        ([0, 1, 1, 0], 1, "1 number"),
    ],
)
def test_whole_numbers_that_are_no_classes(targets, num_outputs, words):
    """Documented contract: a label that no output stands for would be projected to nothing."""
    batch = Batch(jnp.ones((4, 5)), jnp.array(targets))
    model = from_linen(MLP((4,), num_outputs), "layer_0", batch.inputs)

    def loss(outputs, targets):
        return jnp.square(outputs).sum(-1)

    with pytest.raises(InputError, match=words):
        init(DirectRandomTargetProjection(), model, loss, KEY, batch)


def test_gradients_have_the_parameters_types():
    """Invariant: under every rule, for parameters of half precision: an optimiser's state would change
    its type in the first step, and a scan refuse it."""
    case = helpers.mlp()
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), case.params)
    rule = RULES["weight_forward_gradient"]()
    found = jax.eval_shape(
        lambda params: value_and_grad(rule, case.model, helpers.LOSS)(
            params, (), (), case.batch, KEY
        )[1],
        half,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
