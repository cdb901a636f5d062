"""Weight- and activity-perturbed forward gradients, of the outputs' loss and of local ones."""

import contextlib
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.errors import InputError
from dfa_jax.losses import nt_xent
from dfa_jax.models import MLP, LocalMixer, from_linen
from dfa_jax.rules import (
    ActivityForwardGradient,
    Backprop,
    LocalLosses,
    WeightForwardGradient,
    functional,
)
from dfa_jax.types import Batch
from tests import helpers

WEIGHT, ACTIVITY = WeightForwardGradient, ActivityForwardGradient


def relu_mlp():
    """A ReLU perceptron, whose sites are behind the nonlinearity."""
    return helpers.made(MLP((7, 6), 3, "relu"), "layer_*", helpers.images())


def mixer(num=4):
    """A small LocalMixer with three blocks of two groups on four patches."""
    module = LocalMixer(3, 2, 8, 2, 3, zero_readout=False)
    batch = helpers.images(num=num, shape=(4, 4, 2))
    model = from_linen(module, "block_*/*_mixing", batch.inputs, blocks="block_*")
    params = model.init(jax.random.key(1), batch.inputs)
    return helpers.Set(model, params, batch)


LOCAL = functools.partial(LocalLosses, patchwise=True, num_groups=2)

TABLE = {
    "weights": (WEIGHT(), None, helpers.mlp),
    "weights, rademacher": (WEIGHT(noise="rademacher"), None, helpers.mlp),
    "weights, sphere, an example each": (
        WEIGHT(noise="sphere", per_example=True),
        None,
        helpers.mlp,
    ),
    "activities": (ACTIVITY(), None, helpers.mlp),
    "activities, shared by the batch": (ACTIVITY(sharing="batch"), None, helpers.mlp),
    "activities, sphere, shared by pairs": (
        ACTIVITY(noise="sphere", sharing="pairs"),
        None,
        helpers.mlp,
    ),
    "activities, masked": (ACTIVITY(relu_mask=True), None, relu_mlp),
    "activities of a scan": (ACTIVITY(noise="rademacher"), None, helpers.scanned),
    "local, weights": (WEIGHT(), LocalLosses, helpers.mlp),
    "local, activities": (ACTIVITY(), LocalLosses, helpers.mlp),
    "local, not greedy, activities": (
        ACTIVITY(),
        functools.partial(LocalLosses, greedy=False),
        helpers.mlp,
    ),
    "local, activities of a scan": (ACTIVITY(), LocalLosses, helpers.scanned),
    "local, weights of a scan": (WEIGHT(), LocalLosses, helpers.scanned),
    "patches and groups, weights": (WEIGHT(), LOCAL, mixer),
    "patches and groups, activities": (ACTIVITY(relu_mask=True), LOCAL, mixer),
    "last block alone, activities": (
        ACTIVITY(noise="rademacher"),
        functools.partial(LOCAL, blockwise=False),
        mixer,
    ),
    "patches and groups, contrastive": (
        ACTIVITY(relu_mask=True, sharing="pairs"),
        LOCAL,
        lambda: mixer(6),
    ),
}
IN_CI = (  # the widest; the others at night
    "weights",
    "activities",
    "activities of a scan",
    "local, activities",
    "local, activities of a scan",
    "patches and groups, weights",
    "patches and groups, contrastive",
)
LOSSES = {"patches and groups, contrastive": nt_xent}  # the others: helpers.LOSS


def prepared(name):
    """Rule, the same with backpropagation, and what both need."""
    estimator, wrap, made = TABLE[name]
    case = made()
    rule, exact = (wrap(estimator=r) if wrap else r for r in (estimator, Backprop()))
    params, _ = rule.init(jax.random.key(7), case.model, case.params, case.batch)
    return rule, exact, case, params


@pytest.mark.slow
@pytest.mark.parametrize("name", helpers.at_night(TABLE, *IN_CI))
def test_the_mean_of_many_draws_is_the_true_gradient(name):
    """Statistical test: z of every coordinate below the readout, from 3,000 draws; the root of the
    mean of z^2 is within 0.7 to 1.3 (0.95 to 1.05 over the whole table, below): coordinates of one
    network are dependent.

    Its power is in `test_a_ten_per_cent_error_is_seen`.
    """
    z, exact = scores(name)
    assert 0.7 < np.sqrt(np.mean(z**2)) < 1.3
    assert exact < 1e-4  # a sum of 3,000 in single precision


@pytest.mark.nightly
def test_all_z_together():
    """Statistical test: over all coordinates of the table the root of the mean of z^2 is within 0.95
    to 1.05. Rows draw independently."""
    z = np.concatenate([scores(name)[0] for name in TABLE])
    assert 0.95 < np.sqrt(np.mean(z**2)) < 1.05


@pytest.mark.slow
def test_a_ten_per_cent_error_is_seen():
    """Power: the same statistic where the estimate is 1.1 times what it should be."""
    z = np.concatenate(
        [scores(name, factor=1.1)[0] for name in ("activities", "local, activities")]
    )
    assert np.sqrt(np.mean(z**2)) > 1.2


@functools.cache
def scores(name, factor=1.0, num_draws=3000):
    """z by coordinate of what is guessed; the largest error of what is exact, relative."""
    rule, exact, case, params = prepared(name)
    loss = LOSSES.get(name, helpers.LOSS)
    truth = helpers.estimate(exact, case, params, (), loss=loss).grads

    @jax.jit
    def draw(key):
        return functional.estimate(rule, case.model, loss, params, (), (), case.batch, key).grads

    @jax.jit
    def moments(keys):
        def one(sums, key):
            grads = jax.tree.map(lambda g: factor * g, draw(key))
            return jax.tree.map(
                lambda s, g: (s[0] + g, s[1] + g**2), sums, grads, is_leaf=pair
            ), None

        zeros = jax.tree.map(lambda p: (jnp.zeros_like(p), jnp.zeros_like(p)), params)
        return jax.lax.scan(one, zeros, keys)[0]

    sums = moments(jax.random.split(jax.random.key(11), num_draws))
    z, error = [], 0.0
    leaves = zip(jax.tree.leaves_with_path(truth), jax.tree.leaves(sums, is_leaf=pair), strict=True)
    for (path, true), (first, second) in leaves:
        true, mean = np.asarray(true, float), np.asarray(first, float) / num_draws
        variance = np.asarray(second, float) / num_draws - mean**2
        if path[0].key in ("readout", "local_heads"):
            scale = np.abs(factor * true).max()
            error = max(error, np.abs(mean - factor * true).max() / max(scale, 1e-12))
            continue
        counts = variance > 1e-10  # not rounding, where a normalisation makes the truth 0
        z.append((mean - true)[counts] / np.sqrt(variance[counts] / num_draws))
    return np.concatenate([part.ravel() for part in z]), error


def pair(node):
    """Whether a node of the tree of sums is a leaf of it."""
    return isinstance(node, tuple)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights", "activities", "local, weights", "local, activities"])
def test_projection_of_enough_draws_is_the_gradient(x64, name):
    """Exact equivalence: directions that span the space leave nothing to guess."""
    rule, exact, case, params = prepared(name)
    number = 160 if "weights" in name else 20
    wide = {"combination": "projection", "num_draws": number}
    inner = dataclasses.replace(rule.estimator if "local" in name else rule, **wide)
    rule = dataclasses.replace(rule, estimator=inner) if "local" in name else inner
    truth = helpers.estimate(exact, case, params, ()).grads
    helpers.assert_close(helpers.estimate(rule, case, params, ()).grads, truth, 1e-8)


def linear_case(num, inputs, targets):
    """`f = <x W, t>` of each example, as a dense site behind which the readout is the identity."""

    class Module(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.Dense(targets, use_bias=False, name="site")(x)
            return nn.Dense(targets, use_bias=False, name="readout")(h)

    model = from_linen(Module(), "site", jnp.zeros((num, inputs)))
    params = {
        "site": {"kernel": jnp.zeros((inputs, targets))},
        "readout": {"kernel": jnp.eye(targets)},
    }
    return model, params


VARIANCES = {  # p fan-in, q fan-out, N examples: multiples of V and of S
    "weights, shared": (WEIGHT(), lambda p, q, N: ((p * q + 2) / N, p * q + 1)),
    "weights, independent": (
        WEIGHT(per_example=True),
        lambda p, q, N: ((p * q + 2) / N, (p * q + 1) / N),
    ),
    "activities, shared": (ACTIVITY(sharing="batch"), lambda p, q, N: ((q + 2) / N, q + 1)),
    "activities, independent": (ACTIVITY(), lambda p, q, N: ((q + 2) / N, (q + 1) / N)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(VARIANCES))
def test_variance_is_the_papers_formula(name):
    """Closed form: Table 1 of Ren et al. (2023, arXiv 2210.03310) with Gaussian inputs and errors,
    of means mu and nu: S = mu^2 nu^2, V = (1 + mu^2)(1 + nu^2) - S. 60,000 batches; 2 %."""
    p, q, N, mu, nu = 4, 3, 5, 0.7, 0.5
    rule, formula = VARIANCES[name]
    model, params = linear_case(N, p, q)

    @jax.jit
    def draws(key):
        def one(key):
            x_key, t_key, rule_key = jax.random.split(key, 3)
            x = mu + jax.random.normal(x_key, (N, p))
            t = nu + jax.random.normal(t_key, (N, q))
            return functional.estimate(
                rule, model, inner, params, (), (), Batch(x, t), rule_key
            ).grads["site"]

        return jax.vmap(one)(jax.random.split(key, 60_000))["kernel"]

    def inner(outputs, targets):
        return (outputs * targets).sum(-1)

    S = mu**2 * nu**2
    V = (1 + mu**2) * (1 + nu**2) - S
    of_V, of_S = formula(p, q, N)
    measured = np.asarray(draws(jax.random.key(0)), float).var(0).mean()
    assert abs(measured / (of_V * V + of_S * S) - 1) < 0.02


def test_a_while_loop_trains_without_reverse_mode():
    """Exact equivalence: JAX cannot reverse a `while_loop`; the weight-perturbed gradient through one
    is that of the same steps written out, draw by draw."""

    class Looped(nn.Module):
        written_out: bool

        @nn.compact
        def __call__(self, x):
            w = self.param("w", nn.initializers.normal(0.5), (x.shape[-1],) * 2)

            def step(carry):
                i, h = carry
                return i + 1, jnp.tanh(h @ w)

            if self.written_out:
                h = step(step(step((0, x))))[1]
            else:
                h = jax.lax.while_loop(lambda c: c[0] < 3, step, (0, x))[1]
            return nn.Dense(3, name="readout")(nn.Dense(4, name="site")(h))

    batch = helpers.images()
    found = []
    for written_out in (False, True):
        case = helpers.made(Looped(written_out), "site", batch)
        found.append(helpers.estimate(WEIGHT(), case, case.params, ()).grads)
        refused = pytest.raises(ValueError, match="[Rr]everse-mode")
        with contextlib.nullcontext() if written_out else refused:
            helpers.backprop(case)
    helpers.assert_close(found[0], found[1], 1e-5)
    assert np.abs(np.asarray(found[0]["w"])).max() > 0


def sent(rule, case):
    """The errors of a rule without a state, in one program."""

    @jax.jit
    def run(params, batch):
        key = jax.random.key(0)
        return functional.estimate(
            rule, case.model, helpers.LOSS, params, (), (), batch, key
        ).errors

    return run(case.params, case.batch)


def test_noise_is_shared_as_asked(x64):
    """Invariant: the ratio of two units' errors is that of their noise: the same for all examples
    (`batch`), for two neighbours (`pairs`), for none."""
    case = helpers.mlp()
    for sharing, same in (("batch", {0, 1, 2, 3}), ("pairs", {0, 1}), ("none", {0})):
        errors = np.asarray(sent(ACTIVITY(sharing=sharing), case)["layer_0"])
        ratio = errors[:4, 0] / errors[:4, 1]
        assert {i for i in range(4) if abs(ratio[i] / ratio[0] - 1) < 1e-9} == same


def test_mask_spares_what_is_not_active():
    """Invariant: no error where a ReLU is not active; elsewhere there is one."""
    case = relu_mlp()
    activities = jax.jit(lambda p, x: helpers.activities(case.model, p, x))(
        case.params, case.batch.inputs
    )
    errors = sent(ACTIVITY(relu_mask=True), case)
    for site, h in activities.items():
        np.testing.assert_array_equal(np.asarray(errors[site]) != 0, np.asarray(h) > 0)


def test_clipping_limits_the_slope(x64):
    """Closed form: with signs for noise every error has the absolute value |s| / N, at most the
    limit; where |s| is below it, clipping changes nothing."""
    case = helpers.mlp()
    limit = 0.3

    def errors(clip):
        found = sent(ACTIVITY(noise="rademacher", clip=clip), case)
        return np.asarray(found["layer_1"]) * len(case.batch.targets)

    free, clipped = errors(0.0), errors(limit)
    assert np.abs(free).max() > limit > np.abs(free).min()
    np.testing.assert_allclose(clipped, np.clip(free, -limit, limit), rtol=1e-12)


@pytest.mark.parametrize("kind", [WEIGHT, ACTIVITY])
@pytest.mark.parametrize(
    ("options", "words"),
    [({"num_draws": 0}, "num_draws is 0"), ({"clip": -1.0}, "clip is -1.0")],
)
def test_refusals(kind, options, words):
    """Documented contract: no draws, and a negative limit."""
    with pytest.raises(InputError, match=words):
        kind(**options)


def test_readout_can_be_guessed_too():
    """Invariant: with `exact_readout=False` the readout's gradient is the same slope times noise."""
    case = helpers.mlp()
    guessed = helpers.estimate(WEIGHT(exact_readout=False), case, case.params, ()).grads
    true = helpers.backprop(case)
    assert not np.allclose(guessed["readout"]["kernel"], true["readout"]["kernel"])
    exact = helpers.estimate(WEIGHT(), case, case.params, ()).grads
    np.testing.assert_allclose(exact["readout"]["kernel"], true["readout"]["kernel"], rtol=1e-4)
