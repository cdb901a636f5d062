"""The step is one pure function, and running many in a dispatch changes nothing."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dfa_jax import losses
from dfa_jax.data import ImageData
from dfa_jax.models import MLP, from_linen
from dfa_jax.optim import Optimizer
from dfa_jax.rules import RULES, Backprop, GradEstimate, Shallow, functional
from dfa_jax.train import init_state, loop, train_step
from dfa_jax.train import program as program_of
from dfa_jax.types import Batch
from tests import helpers
from tests.train import small


@pytest.fixture(scope="module")
def program():
    """Batchwise random sign, which draws anew every step: keys must follow the step's number."""
    config = small.config("batchwise_random_sign", model=MLP((16,)))
    return small.program(config, small.mesh())


def test_dispatches_share_one_program(program):
    """Oracle: JAX's cache. Neither another number of steps nor a new but equal configuration (the
    next seed of a recipe) may compile again."""
    rows, data = small.order(5), small.data(program.mesh)
    before = loop.run_steps._cache_size(), loop.draw_state._cache_size()
    for seed, num_steps in enumerate((1, 3, 2)):
        equal = dataclasses.replace(program, rule=RULES["batchwise_random_sign"]())
        loop.run_steps(small.state(equal, seed), data, rows, num_steps, program=equal)
    after = loop.run_steps._cache_size(), loop.draw_state._cache_size()
    assert after[0] - before[0] <= 1
    assert after[1] - before[1] <= 1


def test_equals_a_hand_written_loop():
    """Oracle: `jax.grad` and Optax as their manuals write them, five steps, no code of ours but the
    module. Everything else in the trainer is built on this function."""
    batches = [helpers.images(key, 12, (5,), 3) for key in range(5)]
    module, tx = MLP((6,), 3), optax.sgd(0.1, momentum=0.9)
    parts = {
        "model": from_linen(module, "layer_0", batches[0].inputs),
        "rule": Backprop(),
        "loss_fn": helpers.LOSS,
        "tx": tx,
    }

    def objective(params, batch):
        logits = module.apply({"params": params}, batch.inputs)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.targets[:, None], -1)
        return -picked.mean(), logits

    @jax.jit
    def by_hand(params, opt_state, batch):
        (loss, logits), grads = jax.value_and_grad(objective, has_aux=True)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, logits

    @jax.jit
    def step(state, batch):
        return train_step(state, batch, **parts)

    state = jax.jit(lambda key, batch: init_state(key, batch, **parts))(
        jax.random.key(0), batches[0]
    )
    params, opt_state = state.params, tx.init(state.params)
    for batch in batches:
        params, opt_state, loss, logits = by_hand(params, opt_state, batch)
        state, found = step(state, batch)
        np.testing.assert_allclose(found["loss"], loss, rtol=1e-6)
        right = (np.argmax(logits, -1) == batch.targets).mean()
        np.testing.assert_allclose(found["accuracy"], right, rtol=1e-6)
    helpers.assert_close(state.params, params, 1e-6)
    helpers.assert_close(state.opt_state, opt_state, 1e-6)


def test_no_accuracy_without_labels():
    """Oracle: the contract. A regression has no accuracy, and must not report one."""
    x = jnp.ones((4, 3))
    model, loss = from_linen(MLP((6,), 2), "layer_0", x), losses.squared_error
    parts = {"model": model, "rule": Backprop(), "loss_fn": loss, "tx": optax.sgd(0.1)}
    batch = Batch(x, jnp.zeros((4, 2)))
    state = jax.eval_shape(lambda key: init_state(key, batch, **parts), jax.random.key(0))
    _, found = jax.eval_shape(lambda state: train_step(state, batch, **parts), state)
    assert set(found) == {"loss"}


def test_rules_of_one_seed_start_from_the_same_network():
    """Oracle: exact equality over the registry. Otherwise a difference between two rules would be
    partly a difference between two initialisations."""
    batch = helpers.images(0, 4, (5,), 3)
    model = from_linen(MLP((6, 4), 3), "layer_*", batch.inputs)

    @jax.jit
    def start(key):
        parts = {"model": model, "loss_fn": helpers.LOSS, "tx": optax.sgd(0.1)}
        states = {
            name: init_state(key, batch, rule=kind(), **parts) for name, kind in RULES.items()
        }
        return {name: state.params for name, state in states.items()}

    def without_feedback(params):
        leaves = jax.tree.leaves_with_path(params)
        added = ("feedback", "local_heads")
        kept = [(p, v) for p, v in leaves if not {part.key for part in p} & set(added)]
        return {jax.tree_util.keystr(p): v for p, v in kept}

    started = {name: without_feedback(params) for name, params in start(jax.random.key(0)).items()}
    expected = started["backprop"]
    assert len(expected) == 6
    for found in started.values():
        helpers.assert_identical(found, expected)
    other = start(jax.random.key(1))["backprop"]["readout"]["kernel"]
    assert not np.array_equal(other, expected["['readout']['kernel']"])


def run(program, chunks, order):
    """The state after runs of so many steps, and the totals over all."""
    state, totals, begin = small.state(program), {"loss": 0.0, "accuracy": 0.0}, 0
    for length in chunks:
        rows = np.zeros_like(order)
        rows[:length] = order[begin : begin + length]
        state, found = loop.run_steps(
            state, small.data(program.mesh), rows, length, program=program
        )
        totals = {name: totals[name] + float(found[name].sum()) for name in totals}
        begin += length
    return small.plain(state), totals


def test_run_steps_is_that_many_train_steps(program):
    """Oracle: `train_step` called once a step, traced once (a step that is traced anew every time
    is a hundred times slower, and no result shows it). The loop inside the dispatch may fuse
    differently, hence 1e-6 and not bits."""
    order, data = small.order(5), small.data(program.mesh)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, batch):
        return train_step(state, batch, **program.parts)

    state, loss = small.state(program), 0.0
    for row in order:
        state, found = step(state, jax.tree.map(lambda a, row=row: a[row], data))
        loss += float(found["loss"])
    found, totals = run(program, [5], order)
    assert int(found.step) == 5
    helpers.assert_close(found.params, state.params, 1e-6)
    np.testing.assert_allclose(totals["loss"], loss, rtol=1e-6)


@pytest.mark.parametrize("chunks", [[1, 4], [2, 2, 1], [1] * 5], ids=str)
def test_any_chunking_is_bit_identical(program, chunks):
    """Oracle: one dispatch of all the steps. The number of steps a dispatch is a matter of speed: a
    run that is evaluated (or stopped) more often must be the same run."""
    order = small.order(5)
    whole, totals = run(program, [5], order)
    chunked, sums = run(program, chunks, order)
    helpers.assert_identical(chunked, whole)
    np.testing.assert_allclose(sums["loss"], totals["loss"], rtol=1e-6)
    assert sums["accuracy"] == totals["accuracy"]


def test_rows_beyond_the_last_step_are_never_used(program):
    """Oracle: absence. The last dispatch of an epoch is padded; training on the padding would show
    example 0 more often than the others."""
    order = small.order(5)
    padded = order.copy()
    order[3:], padded[3:] = 63, 0
    one, one_totals = run(program, [3], order)
    other, other_totals = run(program, [3], padded)
    helpers.assert_identical(one, other)
    assert one_totals == other_totals
    assert int(one.step) == 3


@dataclasses.dataclass(frozen=True)
class KeyNoted(Shallow):
    """A rule whose state is the key that it was given last."""

    def estimate(self, model, objective, params, rule_state, batch, key, at=None):
        """No gradient, no loss."""
        grads = jax.tree.map(jnp.zeros_like, params)
        outputs, nothing = jnp.zeros((batch.targets.size, 3)), jnp.zeros(())
        noted = jax.random.key_data(key)
        return GradEstimate(nothing, outputs, grads, {}, (), nothing, noted)


def test_every_step_has_a_key_of_its_own():
    """Oracle: the contract, `fold_in(key, t)` at step t. One key for all steps would freeze the
    noise of every rule that draws; a key that is split and carried would depend on where a run was
    resumed."""
    batch = helpers.images(0, 4, (5,), 3)
    model = from_linen(MLP((6,), 3), "layer_0", batch.inputs)
    parts = {"model": model, "rule": KeyNoted(), "loss_fn": helpers.LOSS, "tx": optax.sgd(0.1)}
    state = jax.jit(lambda key: init_state(key, batch, **parts))(jax.random.key(0))
    step = jax.jit(lambda state: train_step(state, batch, **parts))
    run_key = state.key
    for t in range(3):
        state, _ = step(state)
        _, own = jax.random.split(jax.random.fold_in(run_key, t))  # the first is the model's
        expected = jax.random.key_data(own)
        np.testing.assert_array_equal(state.rule_state, expected)


def test_state_is_drawn_where_it_stays():
    """Oracle: `state_shardings`, and bit equality with one device. Parameters that are drawn on one
    device first would not fit there, and must not depend on the number of devices."""
    config = small.config("direct_feedback_alignment", optimizer=Optimizer())
    one = small.state(small.program(config, small.mesh()))
    split = small.state(small.program(config, small.mesh(4, 2)))
    helpers.assert_identical(small.plain(split), small.plain(one))
    kernel = split.params["layer_1"]["Dense_0"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (16, 8)
    feedback, moment = split.rule_state["layer_1"], split.opt_state[1].mu["layer_1"]["Dense_0"]
    assert feedback.sharding.shard_shape(feedback.shape) == (10, 8)
    assert moment["kernel"].sharding.shard_shape((16, 16)) == (16, 8)
    assert moment["bias"].sharding.is_fully_replicated


def test_data_of_the_test_runs():
    """The four steps an epoch that the tests of this folder count on."""
    assert len(ImageData(num_train=64).load().train.targets) // 16 == small.STEPS_PER_EPOCH


def test_a_run_slows_its_models_readout():
    """Oracle: exact equivalence; the readout's first SGD step is half as long, the layers' the same.

    A readout is what lies above the last site, whatever its name.
    """
    moved = []
    for factor in (1.0, 0.5):
        optimizer = Optimizer("sgd", 0.1, readout_factor=factor)
        program = small.program(small.config(optimizer=optimizer), small.mesh())
        before = jax.tree.map(np.asarray, small.state(program).params)
        state = small.state(program)
        after, _ = loop.run_steps(
            state, small.data(program.mesh), small.order(1), 1, program=program
        )
        moved.append(jax.tree.map(lambda a, b: np.asarray(a) - b, after.params, before))
    for module, whole in moved[0].items():
        factor = 0.5 if module == "readout" else 1.0
        expected = jax.tree.map(lambda leaf, factor=factor: factor * leaf, whole)
        helpers.assert_close(moved[1][module], expected, 1e-4)  # differences of rounded weights


@pytest.mark.parametrize(
    "rule",
    [pytest.param("direct_feedback_alignment", marks=pytest.mark.nightly), "kolen_pollack"],
)
def test_a_batch_in_parts_is_the_batch(rule):
    """Exact equivalence, where nothing is drawn: the mean of equal parts' mean gradients is that of
    the batch. Three steps, so that a state that a part has spoilt would show; and less memory."""
    whole = small.program(small.config(rule), small.mesh())
    parted = dataclasses.replace(whole, num_parts=4)
    rows, data = small.order(3), small.data(whole.mesh)
    expected, wanted = loop.run_steps(small.state(whole), data, rows, 3, program=whole)
    found, noted = loop.run_steps(small.state(whole), data, rows, 3, program=parted)
    helpers.assert_close(found.params, expected.params, 1e-5)
    helpers.assert_close(noted, wanted, 1e-5)


def test_parts_draw_noise_of_their_own():
    """Oracle: the mean of the parts' estimates, each written out with its rows and its key."""
    batch = helpers.images(0, 12, (5,), 3)
    model = from_linen(MLP((6,), 3), "layer_0", batch.inputs)
    rule = RULES["weight_forward_gradient"]()
    parts = {"model": model, "rule": rule, "loss_fn": helpers.LOSS, "tx": optax.sgd(1.0)}

    @jax.jit
    def both(key):
        state = init_state(key, batch, **parts)

        def part(i):
            rows = Batch(*(a[i::3] for a in batch))
            own = jax.random.fold_in(jax.random.fold_in(state.key, 0), i)
            of = model, helpers.LOSS, state.params, state.rule_state, (), rows, own
            return functional.estimate(rule, *of).grads

        mean = jax.tree.map(lambda *a: sum(a) / 3, *map(part, range(3)))
        after, _ = train_step(state, batch, num_parts=3, **parts)
        return jax.tree.map(jnp.subtract, state.params, after.params), mean

    moved, mean = both(jax.random.key(0))
    helpers.assert_close(moved, mean, 1e-5)


@pytest.mark.parametrize(
    ("devices", "most", "parts"), [(1, 0, 1), (1, 16, 1), (1, 7, 4), (2, 4, 2), (8, 1, 2)]
)
def test_how_many_parts(devices, most, parts):
    """Oracle: by hand. 16 examples: the fewest equal parts of a device's share, none above most."""
    config = small.config(examples_at_once=most)
    made = program_of.make_program(config, small.DIGITS.load(), 4, devices=jax.devices()[:devices])
    assert made.num_parts == parts
