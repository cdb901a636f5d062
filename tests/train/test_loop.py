"""`fit`: what it computes depends on the configuration alone, and it stops before it lies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tqdm

from dfa_jax.data import EpochShuffle
from dfa_jax.errors import InputError
from dfa_jax.optim import Optimizer
from dfa_jax.rules import RULES
from dfa_jax.train import fit, loop, sharding
from dfa_jax.types import Batch
from tests import helpers, reference
from tests.train import small

RULE = "direct_feedback_alignment"


@pytest.fixture(scope="module")
def result():
    return fit(small.config(RULE), progress=False)


def test_seed_is_all_that_chance_depends_on(result):
    """Oracle: a second run. Two runs of one configuration are one number in a table, whatever other
    random numbers the process has drawn meanwhile."""
    np.random.default_rng().normal(size=3)
    again = fit(small.config(RULE), progress=False)
    helpers.assert_identical(small.plain(again.state), small.plain(result.state))
    assert small.without_time(again.record.curve) == small.without_time(result.record.curve)


def test_seeds_differ_in_everything_they_should(result):
    """Oracle: absence of equality. Seeds are the sample of every interval that is reported:
    parameters and feedback must differ between them."""
    other = fit(small.config(RULE, seed=1), progress=False)
    assert not np.array_equal(other.state.rule_state["layer_0"], result.state.rule_state["layer_0"])
    kernels = [r.state.params["readout"]["kernel"] for r in (other, result)]
    assert not np.array_equal(*kernels)


def test_a_bar_of_several_runs_is_moved_on(tmp_path):
    """Oracle: counting. Two runs of twelve steps, the second of which is there already: it stands where
    both end, is still open, and takes for its own pace the twelve steps that were taken."""
    config, folder = small.config(RULE), tmp_path / "run"
    with tqdm.tqdm(total=24) as bar:
        fit(config, run_dir=folder, progress=bar)
        assert (bar.n, bar.initial) == (12, 0)
        fit(config, run_dir=folder, resume=True, progress=bar)
        assert (bar.n, bar.initial, bar.total, bar.disable) == (24, 12, 24, False)


def test_curve_does_not_depend_on_how_often_one_looks(result):
    """Oracle: exact equality of the final state, and the mean of the means for the training loss.
    Evaluating must not touch training."""
    often = fit(small.config(RULE, eval_every=0.25), progress=False)
    helpers.assert_identical(small.plain(often.state), small.plain(result.state))
    assert [point.step for point in often.record.curve] == list(range(1, 13))
    losses = np.reshape([point.train_loss for point in often.record.curve], (3, 4)).mean(-1)
    np.testing.assert_allclose(losses, [p.train_loss for p in result.record.curve], rtol=1e-6)
    last = often.record.final, result.record.final
    assert last[0].test_loss == last[1].test_loss


def test_curve_against_numpy(result):
    """Oracle: double-precision NumPy on the final parameters and the data set itself."""
    dataset = small.DIGITS.load()
    inputs = dataset.test.inputs.reshape(24, -1)
    outputs = reference.forward(result.state.params, inputs, "tanh")[0][-1]
    final = result.record.final
    np.testing.assert_allclose(
        final.test_loss, reference.loss(outputs, dataset.test.targets), rtol=1e-5
    )
    assert final.test_accuracy == pytest.approx((outputs.argmax(-1) == dataset.test.targets).mean())


def test_steps_take_the_examples_that_the_source_names(result):
    """Oracle: all twelve steps in one dispatch, on the rows of `EpochShuffle`. An order that is off
    by one would train on other batches after every evaluation."""
    program = small.program(small.config(RULE), sharding.make_mesh())
    rows = np.zeros((loop.STEPS_PER_DISPATCH, 16), np.int32)
    rows[:12] = EpochShuffle(64, 16, seed=0).indices(0, 12)
    state = small.state(program)
    state, _ = loop.run_steps(state, small.data(program.mesh), rows, 12, program=program)
    helpers.assert_identical(small.plain(result.state), small.plain(state))


@pytest.mark.parametrize("number", [7, 500, 1003])
def test_evaluate_is_the_mean_over_every_example(number):
    """Oracle: double-precision NumPy. Test sets are no multiple of the evaluation batch; a mean of
    batch means would weigh the examples of the last batch too much."""
    program = small.program(small.config(), small.mesh())
    params = small.state(program).params
    batch = helpers.images(3, number, (8, 8, 1), 10)
    found = loop.evaluate(params, batch, program=program)
    outputs = reference.forward(params, np.reshape(batch.inputs, (number, -1)), "tanh")[0][-1]
    labels = np.asarray(batch.targets)
    np.testing.assert_allclose(found["loss"], reference.loss(outputs, labels), rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], (outputs.argmax(-1) == labels).mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("eval_every", "where"),
    [
        (1.0, "the loss is (nan|inf) at step [123];"),
        (0.25, "the test loss is .* after step 1"),
    ],
    ids=["while training", "in the last step before an evaluation"],
)
def test_divergence_stops_the_run_before_it_is_recorded(tmp_path, eval_every, where):
    """Oracle: absence. A NaN in a curve is no JSON, and a checkpoint of NaNs would replace one that
    is worth resuming; the message says where it happened and what to change."""
    diverging = Optimizer("sgd", learning_rate=1e38)
    config = small.config("shallow", optimizer=diverging, eval_every=eval_every)
    with pytest.raises(InputError, match=f"{where}.*learning-rate") as caught:
        fit(config, run_dir=tmp_path / "run", progress=False)
    assert len(str(caught.value).splitlines()) == 1
    assert (tmp_path / "run" / "curve.jsonl").read_text() == ""
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def trained(rule, on, num_steps=6):
    """State and totals after a few steps of plain gradient descent on a mesh."""
    optimizer = Optimizer("sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    config = small.config(rule, optimizer=optimizer)
    state = small.state(small.program(config, small.mesh()))
    program = small.program(config, on)
    state = jax.device_put(state, sharding.state_shardings(on, state))
    return loop.run_steps(state, small.data(on), small.order(num_steps), num_steps, program=program)


@pytest.fixture(scope="module")
def on_one_device():
    return {rule: trained(rule, small.mesh()) for rule in ("backprop", RULE)}


@pytest.mark.parametrize(
    ("rule", "data", "model"),
    [
        (RULE, 8, 1),
        pytest.param(RULE, 4, 2, marks=pytest.mark.nightly),
        (RULE, 2, 4),
        ("backprop", 2, 4),
    ],
)
def test_mesh_does_not_matter(on_one_device, rule, data, model):
    """Oracle: one device. Splitting the batch or the width changes the order of float32 sums only,
    1e-7 a step; momentum SGD lets it grow over six steps to some 1e-6, hence 1e-5. (Adam divides by
    the root of tiny second moments and would magnify it without end.)"""
    state, totals = trained(rule, small.mesh(data, model))
    expected, expected_totals = on_one_device[rule]
    helpers.assert_close(state.params, expected.params, 1e-5)
    helpers.assert_identical(state.rule_state, expected.rule_state)
    np.testing.assert_allclose(totals["loss"], expected_totals["loss"], rtol=1e-5)
    assert not np.array_equal(state.params["readout"]["bias"], np.zeros(10))
    kernel = state.params["layer_0"]["Dense_0"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (64, 16 // model)


def test_fsdp_of_one_device_changes_nothing(on_one_device):
    """Exact equivalence: a laptop runs what a slice runs, with nothing to share the state with."""
    state, totals = trained(RULE, small.mesh(fsdp=True))
    expected, expected_totals = on_one_device[RULE]
    helpers.assert_identical(small.plain(state), small.plain(expected))
    helpers.assert_identical(totals, expected_totals)


def test_batch_that_does_not_divide_is_refused():
    """Oracle: the contract. The message has both numbers and a batch size that works."""
    with pytest.raises(InputError, match=r"batch_size 12 .* 8 devices .* use 16"):
        fit(small.config(batch_size=12), progress=False)
    with pytest.raises(InputError, match=r"batch_size 5 .* 4 devices .* use 4"):
        sharding.make_mesh(model_axis=2, batch_size=5)
    with pytest.raises(InputError, match="model_axis is 3, which does not divide the 8 devices"):
        fit(small.config(model_axis=3), progress=False)
    assert dict(sharding.make_mesh(model_axis=4, batch_size=6).shape) == {"data": 2, "model": 4}


def test_odd_widths_stay_whole():
    """Oracle: the shapes. A readout of 10 classes on a model axis of 4 cannot be split, and
    trains."""
    state = {"kernel": jnp.zeros((16, 10)), "bias": jnp.zeros(10), "wide": jnp.zeros((2, 16, 8))}
    found = sharding.state_shardings(small.mesh(2, 4), state)
    assert found["kernel"].is_fully_replicated
    assert found["bias"].is_fully_replicated
    assert found["wide"].shard_shape((2, 16, 8)) == (2, 16, 2)


@pytest.mark.parametrize(
    ("shape", "own", "whole"),
    [
        ((16, 8), (4, 4), (16, 4)),
        ((3, 16, 8), (3, 4, 4), (3, 16, 4)),
        ((10, 8), (10, 4), (10, 4)),
        ((16,), (16,), (16,)),
    ],
    ids=["a matrix", "a stack", "an odd number of rows", "a bias"],
)
def test_fsdp_keeps_no_matrix_whole(shape, own, whole):
    """By hand, on 4 x 2 devices: columns by 2 over the model axis, the longest other axis by 4 over
    fsdp; a step computes with all of the rows."""
    mesh = small.mesh(4, 2, fsdp=True)
    split = jnp.zeros(shape)
    split = jax.device_put(split, sharding.state_shardings(mesh, split))
    assert split.sharding.shard_shape(shape) == own
    gathered = jax.jit(lambda a: sharding.gathered(mesh, a))(split)
    assert gathered.sharding.shard_shape(shape) == whole


def test_progress_bar_shows_what_was_promised(capsys):
    """Oracle: the issue. Loss, accuracy, steps/s and time left, on standard error, and only
    there."""
    fit(small.config(RULE))
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.replace("\r", "\n").strip().splitlines()[-1]
    for part in (RULE, "12/12", "loss=", "accuracy=", "step/s", "<"):
        assert part in last
    fit(small.config(RULE), progress=False)
    assert capsys.readouterr().err == ""


def test_long_dispatches_are_split(monkeypatch, result):
    """Oracle: exact equality. An epoch longer than one dispatch is the same epoch, and so is what it
    says of itself: how steps are dispatched depends on the machine's speed."""
    monkeypatch.setattr(loop, "STEPS_PER_DISPATCH", 3)
    split = fit(small.config(RULE), progress=False)
    helpers.assert_identical(small.plain(split.state), small.plain(result.state))
    ours, theirs = (small.without_time(r.record.curve) for r in (split, result))
    assert ours == theirs


def test_data_is_given_to_the_devices_once():
    """Oracle: absence, through JAX's transfer guard. Copying examples to the device every dispatch
    is what makes small networks slow."""
    program = small.program(small.config(RULE), sharding.make_mesh())
    state, data = small.state(program), small.data(program.mesh)
    rows, number = small.order(loop.STEPS_PER_DISPATCH), 4
    rows, number = jax.device_put((rows, number), sharding.replicated(program.mesh))
    loop.run_steps(small.state(program), data, rows, number, program=program)
    with jax.transfer_guard("disallow"):
        state, _ = loop.run_steps(state, data, rows, number, program=program)
    assert int(state.step) == 4
    assert isinstance(data, Batch)


def test_every_rule_is_a_configuration():
    """Oracle: the registry. Frozen, hashable and equal to its like: what a jitted program and a
    record both need."""
    for kind in RULES.values():
        assert hash(small.config(rule_name(kind))) == hash(small.config(rule_name(kind)))
        assert dataclasses.replace(kind()) == kind()


def rule_name(kind):
    (name,) = (name for name, known in RULES.items() if known is kind)
    return name
