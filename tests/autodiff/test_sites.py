"""`site_gradients` and its kin: local VJPs from one error per site."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax import autodiff, rules, tree
from dfa_jax.errors import SiteError
from dfa_jax.models import MLP, from_linen
from dfa_jax.rules import functional
from tests import helpers
from tests.helpers import LOSS

CASES = [helpers.mlp, helpers.convnet, helpers.scanned]


class Skips(nn.Module):
    """Blocks with skip connections inside and norm layers, as a user would write them."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(6, name="stem")(x)
        for i in range(2):
            h = Block(name=f"block_{i}")(h)
        return nn.Dense(3, name="head")(nn.LayerNorm(name="norm")(h))


class Block(nn.Module):
    @nn.compact
    def __call__(self, h):
        g = nn.gelu(nn.Dense(9, name="up")(nn.LayerNorm(name="norm")(h)))
        return h + nn.Dense(6, name="down")(g)


def skips():
    return helpers.made(Skips(), ["stem", "block_*"], helpers.images())


@functools.cache
def plain(case):
    """A case, and without this library its gradients, outputs and loss."""
    case = case()
    return case, helpers.backprop(case), *helpers.plain_forward(case)


@pytest.mark.parametrize(
    ("case", "tap"),
    [(case, "logits") for case in [*CASES, skips]]
    + [(case, "last_hidden") for case in (helpers.mlp, helpers.convnet, skips)],
)
def test_true_errors_give_the_true_gradient(x64, case, tap):
    """Exact equivalence: with `delta_l = dL/dh_l` the local VJPs make `jax.grad`, to 1e-12.

    It proves that the cuts lose nothing and count nothing twice, for every rule at once.
    """
    case, grads, outputs, loss = plain(case)

    @jax.jit
    def run(params, batch):
        errors = autodiff.chain_gradients(case.model, LOSS, params, batch, {}).errors
        return autodiff.site_gradients(
            case.model, LOSS, params, batch, lambda e, h, share: errors, error_tap=tap
        )

    found = run(case.params, case.batch)
    helpers.assert_close(found.grads, grads, 1e-12)
    np.testing.assert_allclose(found.outputs, outputs, rtol=1e-12)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-12)


def test_errors_match_one_vjp_per_segment(x64):
    """Independent implementation: the blocks applied one by one, one `jax.vjp` each, errors drawn.

    The interceptor's cut graph against code without any interceptor.
    """
    case = skips()
    p, x = case.params, case.batch.inputs
    drawn = {s: helpers.normals(np.zeros((16, 6)), i) for i, s in enumerate(case.model.sites)}
    found = jax.jit(
        lambda params, batch: autodiff.site_gradients(
            case.model, LOSS, params, batch, lambda e, h, share: drawn
        )
    )(p, case.batch)

    def head(w, h):
        normed = nn.LayerNorm().apply({"params": w["norm"]}, h)
        return nn.Dense(3).apply({"params": w["head"]}, normed)

    @jax.jit
    def by_hand(p, h, targets):
        grads = {}
        for site, module in {"stem": nn.Dense(6), "block_0": Block(), "block_1": Block()}.items():
            h, pull = jax.vjp(lambda w, h=h, m=module: m.apply({"params": w}, h), p[site])
            (grads[site],) = pull(drawn[site])
        tail = {name: p[name] for name in ("norm", "head")}
        return grads | jax.grad(lambda w: LOSS(head(w, h), targets).mean())(tail)

    helpers.assert_close(found.grads, by_hand(p, x, case.batch.targets), 1e-12)


def test_an_error_moves_its_own_segment_only():
    """Invariant: an error sent to one site gives gradients between it and the sites below, only."""
    case = skips()

    @jax.jit
    def run(params, batch, receiver):
        def send(error, activities, shares):
            del error, shares
            sites = enumerate(case.model.sites)
            return {site: jnp.ones_like(activities[site]) * (i == receiver) for i, site in sites}

        return autodiff.site_gradients(case.model, LOSS, params, batch, send).grads

    for receiver in range(3):
        grads = run(case.params, case.batch, receiver)
        for i, site in enumerate(case.model.sites):
            largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads[site]))
            assert (largest > 0) == (i == receiver)


@pytest.mark.parametrize(
    ("rule", "case"),
    [
        (rules.FeedbackAlignment(), helpers.convnet),
        (rules.FeedbackAlignment(), helpers.scanned),
        (rules.BatchwiseRandomSign(), helpers.mlp),
    ],
    ids=["convnet", "scanned", "fresh per key"],
)
def test_chain_errors_make_the_chain_rules_gradients(x64, rule, case):
    """Exact equivalence: a chain rule's `errors` through local VJPs give its `estimate`.

    Alignment is measured on `errors`; they must be those that training uses. (With a site at every
    layer no linear map lies inside a segment but its own, whose transpose no parameter reads.)
    """
    case = case()
    params, state = helpers.started(rule, case)

    @jax.jit
    def run(params, state, batch):
        key = jax.random.key(3)
        errors = functional.estimate(rule, case.model, LOSS, params, state, (), batch, key).errors
        return autodiff.site_gradients(
            case.model, LOSS, params, batch, lambda e, h, share: errors
        ).grads

    expected = helpers.estimate(rule, case, params, state).grads
    helpers.assert_close(run(params, state, case.batch), expected, 1e-12)


@pytest.mark.parametrize("name", helpers.every_day(rules.RULES))
@pytest.mark.parametrize(
    "case", [helpers.mlp, pytest.param(helpers.convnet, marks=pytest.mark.slow)]
)
def test_errors_before_the_activation_sum_to_the_gradients_of_biases(x64, name, case):
    """Exact equivalence: a bias adds to the pre-activation, so its gradient is that error, summed.

    So alignment before the activation function is measured on the errors that training uses.
    """
    case, rule = case(), rules.RULES[name]()
    params, state = helpers.started(rule, case)
    model = case.model
    at = model.at(list(model.linear_maps)[:-1])

    @jax.jit
    def run(params, state, batch):
        args = (rule, model, LOSS, params, state, (), batch, jax.random.key(0))
        return functional.estimate(*args, at=at).errors, functional.estimate(*args).grads

    errors, grads = run(params, state, case.batch)
    for place, error in errors.items():
        expected = tree.get(grads, (*model.linear_maps[place].path[:-1], "bias"))
        summed = np.asarray(error).reshape(-1, error.shape[-1]).sum(0)
        helpers.assert_close(summed, np.asarray(expected), 1e-10)


def test_errors_at_a_site_itself_are_those_sent(x64):
    """Closed form: asked at a place that is a site, the answer is what the site was sent."""
    batch = helpers.images()
    case = helpers.made(MLP((7, 6), 3), ["layer_0/Dense_0", "layer_1"], batch)
    rule = rules.DirectFeedbackAlignment()
    params, state = helpers.started(rule, case)
    at = from_linen(case.model.module, ["layer_0/Dense_0", "layer_1/Dense_0"], batch.inputs)

    @jax.jit
    def run(params, state, batch):
        args = (rule, case.model, LOSS, params, state, (), batch, jax.random.key(0))
        return functional.estimate(*args).errors, functional.estimate(*args, at=at).errors

    sent, found = run(params, state, batch)
    np.testing.assert_array_equal(found["layer_0/Dense_0"], sent["layer_0/Dense_0"])
    assert found["layer_1/Dense_0"].shape == sent["layer_1"].shape


def test_input_site_is_the_output_site_of_the_activation_before(x64):
    """Exact equivalence: `readout:input` is the same place as the output of the layer below it."""
    batch = helpers.images()
    by_output = helpers.made(MLP((7, 6), 3), ["layer_0", "layer_1"], batch)
    by_input = helpers.made(MLP((7, 6), 3), ["layer_1:input", "readout:input"], batch)
    assert by_input.model.sites == ("layer_1:input", "readout:input")
    rule = rules.DirectFeedbackAlignment()
    _, state = helpers.started(rule, by_output)
    renamed = dict(zip(by_input.model.sites, state.values(), strict=True))
    helpers.assert_identical(
        helpers.estimate(rule, by_input, by_input.params, renamed).grads,
        helpers.estimate(rule, by_output, by_output.params, state).grads,
    )


def test_errors_of_another_shape_are_refused():
    """Documented contract: an error that would broadcast is an error in the code of a rule."""
    case = helpers.mlp()
    for wrong in ({}, {"layer_0": jnp.ones((16, 7)), "layer_1": jnp.ones((1, 6))}):

        def run(params, wrong=wrong):
            return autodiff.site_gradients(
                case.model, LOSS, params, case.batch, lambda e, h, share: wrong
            ).grads

        with pytest.raises(
            SiteError, match=r"site 'layer_[01]' needs an error of shape \(16, [67]\)"
        ):
            jax.eval_shape(run, case.params)


def test_last_hidden_tap_refuses_a_stack():
    """Documented contract: the activity of a whole stack is no place to read one error from."""
    case = helpers.scanned()
    with pytest.raises(SiteError, match=r"'layers', which is a stack"):
        jax.eval_shape(
            lambda params: autodiff.site_gradients(
                case.model, LOSS, params, case.batch, lambda e, h, share: h, error_tap="last_hidden"
            ),
            case.params,
        )


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = jnp.tanh(nn.Dense(8, name="first")(x))
        h = nn.Dropout(0.5, deterministic=False)(h)
        h = jnp.tanh(nn.Dense(8, name="second")(h))
        return nn.Dense(3, name="readout")(h)


def dropped():
    return helpers.made(Dropped(), ["first", "second"], helpers.images())


def test_rules_agree_on_dropout():
    """Exact equivalence: for one key all rules see the same mask, for another key another one.

    Otherwise a comparison of rules would compare masks, and the alignment would be too low.
    """
    case = dropped()
    outputs = {}
    for name, kind in rules.RULES.items():
        rule = kind()
        params, state = helpers.started(rule, case)

        @jax.jit
        def run(key, params, state, batch, rule=rule):
            return functional.estimate(
                rule, case.model, LOSS, params, state, (), batch, key
            ).outputs

        same, other = (run(jax.random.key(i), params, state, case.batch) for i in (0, 1))
        outputs[name] = same
        np.testing.assert_allclose(same, outputs["backprop"], rtol=1e-5, atol=1e-6)
        assert np.abs(other - same).max() > 0.01


def test_true_errors_give_the_true_gradient_under_dropout(x64):
    """Exact equivalence: `chain_gradients` and `site_gradients` with one key use one mask."""
    case, key = dropped(), jax.random.key(7)

    @jax.jit
    def run(params, batch):
        errors = autodiff.chain_gradients(case.model.bind(key=key), LOSS, params, batch, {}).errors
        return autodiff.site_gradients(
            case.model.bind(key=key), LOSS, params, batch, lambda e, h, share: errors
        ).grads

    def objective(params):
        outputs = case.model.module.apply(
            {"params": params}, case.batch.inputs, rngs={"dropout": key}
        )
        return LOSS(outputs, case.batch.targets).mean()

    helpers.assert_close(run(*case[1:]), jax.jit(jax.grad(objective))(case.params), 1e-12)
