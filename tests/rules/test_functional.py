"""The functional form: `init` and `value_and_grad` under JAX's transforms and Optax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dfa_jax.models import from_linen
from dfa_jax.rules import (
    RULES,
    ActivityForwardGradient,
    Backprop,
    DirectFeedbackAlignment,
    init,
    value_and_grad,
)
from tests import helpers


class Normed(nn.Module):
    """Batch statistics, so that there is a state to carry."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        h = jnp.tanh(nn.Dense(6, name="first")(x))
        h = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(h)
        return nn.Dense(3, name="readout")(h)


def test_a_scan_of_steps_is_the_loop_written_out():
    """Independent implementation: `jax.grad` of the module's own `apply`, its statistics carried by
    hand, and Optax; four steps in one `lax.scan` of the functional form."""
    batch, tx = helpers.images(), optax.adam(0.05)
    model = from_linen(Normed(), "first", batch.inputs)
    start = init(Backprop(), model, helpers.LOSS, jax.random.key(0), batch)
    estimate = value_and_grad(Backprop(), model, helpers.LOSS)

    @jax.jit
    def scanned(params, rule_state, model_state, batch):
        def step(carry, key):
            params, rule_state, model_state, opt_state = carry
            (loss, aux), grads = estimate(params, rule_state, model_state, batch, key)
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, aux.rule_state, aux.model_state, opt_state), loss

        begin = (params, rule_state, model_state, tx.init(params))
        return jax.lax.scan(step, begin, jax.random.split(jax.random.key(1), 4))

    @jax.jit
    def by_hand(params, stats, batch):
        opt_state, losses = tx.init(params), []
        for _ in range(4):

            def objective(params, stats=stats):
                outputs, moved = Normed().apply(
                    {"params": params, **stats}, batch.inputs, mutable=["batch_stats"]
                )
                return helpers.LOSS(outputs, batch.targets).mean(), moved

            (loss, stats), grads = jax.value_and_grad(objective, has_aux=True)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            losses.append(loss)
        return params, stats, jnp.stack(losses)

    (params, _, stats, _), losses = scanned(*start, batch)
    expected, wanted, by_step = by_hand(start.params, start.model_state, batch)
    np.testing.assert_allclose(losses, by_step, rtol=1e-5)
    helpers.assert_close(params, expected, 1e-4)
    helpers.assert_close(dict(stats), dict(wanted), 1e-5)


@pytest.mark.parametrize(
    "name", ["direct_feedback_alignment", "feedback_alignment", "activity_forward_gradient"]
)
def test_vmap_over_parameters_and_keys_is_one_by_one(name):
    """Exact equivalence: two networks at once and each alone."""
    case, rule = helpers.mlp(), RULES[name]()
    estimate = value_and_grad(rule, case.model, helpers.LOSS)
    params, state = helpers.started(rule, case)
    two = jax.tree.map(lambda leaf: np.stack([leaf, 0.5 * np.asarray(leaf)]), params)
    keys = jax.random.split(jax.random.key(2), 2)

    @jax.jit
    def both(two, keys, batch):
        at_once = jax.vmap(estimate, in_axes=(0, None, None, None, 0))
        alone = [
            estimate(jax.tree.map(lambda leaf, i=i: leaf[i], two), state, (), batch, keys[i])[1]
            for i in (0, 1)
        ]
        return at_once(two, state, (), batch, keys)[1], alone

    at_once, alone = both(two, keys, case.batch)
    for i, one in enumerate(alone):
        helpers.assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], at_once), one, 1e-5)


def test_optax_transformations_of_any_kind():
    """Closed form: `multi_transform` freezes the readout and moves the rest by SGD; `MultiSteps`
    waits for two gradients and takes their mean."""
    case, rule = helpers.mlp(), DirectFeedbackAlignment()
    params, state = helpers.started(rule, case)
    labels = {name: "still" if name == "readout" else "moved" for name in params}
    frozen = optax.multi_transform({"moved": optax.sgd(0.1), "still": optax.set_to_zero()}, labels)
    estimate = value_and_grad(rule, case.model, helpers.LOSS)

    @jax.jit
    def run(params, batch):
        grads = estimate(params, state, (), batch, jax.random.key(0))[1]
        updates, _ = frozen.update(grads, frozen.init(params), params)
        several = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2)
        opt_state = several.init(params)
        first, opt_state = several.update(grads, opt_state, params)
        second, _ = several.update(jax.tree.map(jnp.zeros_like, grads), opt_state, params)
        return grads, updates, first, second

    grads, updates, first, second = run(params, case.batch)
    expected = {
        n: jax.tree.map(lambda g, n=n: -0.1 * g * (n != "readout"), grads[n]) for n in grads
    }
    helpers.assert_close(updates, expected, 1e-6)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(first))
    helpers.assert_close(second, jax.tree.map(lambda g: -0.05 * g, grads), 1e-6)


def test_errors_that_nobody_reads_cost_nothing():
    """Absence of a product: the compiled estimate is the same with and without the errors in what the
    function returns, if nothing but the gradients is asked for."""
    case, rule = helpers.mlp(), Backprop()
    estimate = value_and_grad(rule, case.model, helpers.LOSS)

    def flops(run):
        compiled = jax.jit(run).lower(case.params, case.batch).compile()
        return compiled.cost_analysis()["flops"]

    def plain(params, batch):
        def objective(params):
            outputs = case.model.module.apply({"params": params}, batch.inputs)
            return helpers.LOSS(outputs, batch.targets).mean()

        return jax.value_and_grad(objective)(params)

    def ours(params, batch):
        (loss, _), grads = estimate(params, (), (), batch, jax.random.key(0))
        return loss, grads

    assert flops(ours) <= 1.01 * flops(plain)


def test_a_state_is_moved_once_a_batch_whatever_the_rule_runs():
    """Closed form: after one estimate the running mean is a tenth of the batch's mean, also under a
    rule that runs several passes (four draws, one to look, one cut)."""
    batch = helpers.images()
    model = from_linen(Normed(), "first", batch.inputs)
    rule = ActivityForwardGradient(num_draws=4)
    start = init(rule, model, helpers.LOSS, jax.random.key(0), batch)
    estimate = jax.jit(value_and_grad(rule, model, helpers.LOSS))
    (_, aux), _ = estimate(*start, batch, jax.random.key(1))
    dense = start.params["first"]
    h = np.tanh(np.asarray(batch.inputs @ dense["kernel"] + dense["bias"][None]))
    found = aux.model_state["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(found, 0.1 * h.mean(0), rtol=1e-4, atol=1e-6)
