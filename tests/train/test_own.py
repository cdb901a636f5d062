"""The trainer on what a user brings: module and call, loss, metrics, optimiser, arrays."""

import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dfa_jax.data import ArrayData, EpochShuffle
from dfa_jax.errors import DivergedError, InputError
from dfa_jax.models import MLP
from dfa_jax.optim import Optimizer
from dfa_jax.train import TrainConfig, fit, loop, records
from dfa_jax.train.cli import parse_config
from dfa_jax.train.config import Calling, changes, to_dict
from dfa_jax.train.given import check_loss, checked_metrics
from dfa_jax.train.program import make_program
from dfa_jax.types import Loss
from tests import helpers
from tests.train import small

TRAIN, TEST, TIME = 24, 11, 3
BATCH, STEPS = 8, 6
TX = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.02)), 2)


class Normed(nn.Module):
    """Two inputs by keyword, batch statistics, an output in a dict."""

    @nn.compact
    def __call__(self, *, features, scale, train):
        h = nn.Dense(6, use_bias=False, name="hidden")(features)
        h = nn.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.8, name="norm")(h))
        return {"mean": scale * nn.Dense(TIME, name="top")(h)}


def call(module, inputs, train):
    return module(**inputs, train=train)


def masked_square(outputs, targets):
    """As padded text is scored: a weighted mean over places."""
    return Loss(jnp.square(outputs["mean"] - targets["y"]), targets["mask"])


def masked_distance(outputs, targets):
    return Loss(jnp.abs(outputs["mean"] - targets["y"]), targets["mask"])


def places(outputs, targets):
    """Whole numbers, one an example."""
    del outputs
    return targets["mask"].astype(jnp.int32).sum(1)


def drawn(seed, number):
    random = np.random.default_rng(seed)
    inputs = {"features": random.normal(size=(number, 4)), "scale": random.normal(size=(number, 1))}
    mask = (np.arange(TIME) <= random.integers(TIME, size=(number, 1))).astype(np.float32)
    return inputs, {"y": random.normal(size=(number, TIME)), "mask": mask}


DATA = ArrayData(drawn(0, TRAIN), drawn(1, TEST))
CONFIG = TrainConfig(
    data=DATA,
    model=Normed(),
    calling=Calling(call=call),
    sites=("hidden",),
    loss=masked_square,
    metrics={"distance": masked_distance, "places": places},
    optimizer=TX,
    batch_size=BATCH,
    num_epochs=2,
    alignment_examples=0,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run, and its directory."""
    folder = tmp_path_factory.mktemp("own") / "run"
    return fit(CONFIG, run_dir=folder, progress=False), folder


def by_hand():
    """A loop as one writes it with Optax and `jax.grad`; losses and metrics of every step."""
    module, tx = CONFIG.model, TX
    inputs, _ = DATA.train
    key = jax.random.split(jax.random.split(jax.random.key(0), 3)[0])[0]
    start = jax.jit(lambda key: module.init({"params": key}, **inputs, train=True))(key)

    def objective(params, stats, inputs, targets):
        outputs, new = module.apply(
            {"params": params, "batch_stats": stats}, **inputs, train=True, mutable=["batch_stats"]
        )
        gap, weight = outputs["mean"] - targets["y"], targets["mask"] / targets["mask"].sum()
        return (weight * gap**2).sum(), (new["batch_stats"], (weight * abs(gap)).sum())

    @jax.jit
    def step(params, stats, opt_state, batch):
        (loss, (stats, distance)), grads = jax.value_and_grad(objective, has_aux=True)(
            params, stats, *batch
        )
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state, (loss, distance)

    params, stats = start["params"], start["batch_stats"]
    opt_state, found = tx.init(params), []
    for rows in EpochShuffle(TRAIN, BATCH, seed=0).indices(0, STEPS):
        batch = jax.tree.map(lambda a, rows=rows: a[rows], DATA.train)
        params, stats, opt_state, noted = step(params, stats, opt_state, batch)
        found.append(noted)
    return params, stats, opt_state, np.array(found)


def test_fit_is_the_loop_that_one_would_write(trained):
    """Oracle: a loop with `jax.grad` and Optax over the same arrays. A module called by keywords on a
    dict, a masked loss, batch statistics and an optimiser that skips every second step must come to
    the same parameters, moments and running statistics."""
    result, _ = trained
    params, stats, opt_state, noted = by_hand()
    helpers.assert_close(result.state.params, params, 1e-5)
    helpers.assert_close(result.state.model_state, {"batch_stats": stats}, 1e-5)
    helpers.assert_close(result.state.opt_state, opt_state, 1e-5)
    losses = [point.train_loss for point in result.record.curve]
    np.testing.assert_allclose(losses, noted[:, 0].reshape(2, -1).mean(1), rtol=1e-5)
    distances = [point.metrics["train_distance"] for point in result.record.curve]
    np.testing.assert_allclose(distances, noted[:, 1].reshape(2, -1).mean(1), rtol=1e-5)


def test_test_set_against_numpy(trained):
    """Oracle: NumPy on the whole test set at once, with the running statistics. 11 examples are no
    multiple of the 8 devices: what fills the last part up must not count, nor any masked place."""
    result, _ = trained
    inputs, targets = DATA.test
    variables = {"params": result.state.params, **result.state.model_state}
    outputs = jax.jit(lambda v: CONFIG.model.apply(v, **inputs, train=False))(variables)["mean"]
    gap, mask = np.float64(outputs) - targets["y"], np.float64(targets["mask"])
    final = result.record.final
    np.testing.assert_allclose(final.test_loss, (mask * gap**2).sum() / mask.sum(), rtol=1e-5)
    distance = (mask * abs(gap)).sum() / mask.sum()
    np.testing.assert_allclose(final.metrics["test_distance"], distance, rtol=1e-5)
    np.testing.assert_allclose(final.metrics["test_places"], mask.sum(1).mean(), rtol=1e-6)


def test_no_accuracy_is_recorded_where_there_is_none(trained):
    """Oracle: the contract. A regression has no accuracy: None in the record, which is read again, and
    nothing in the files of TensorBoard."""
    result, folder = trained
    lines = (folder / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line)["test_accuracy"] for line in lines] == [None, None]
    (events,) = (folder / "tensorboard").iterdir()
    assert b"accuracy" not in events.read_bytes()
    assert events.read_bytes().count(b"test_distance") == 2
    (whole,) = [records.parse_run(json.loads((folder / "record.json").read_text()))]
    assert whole.curve == result.record.curve


def test_resume_from_the_middle(trained, tmp_path):
    """Oracle: bits of the run that was left alone. Running statistics and the optimiser's counter are
    state like any other: a checkpoint without them would go on as another run."""
    result, folder = trained
    copy = shutil.copytree(folder, tmp_path / "run")
    (copy / "record.json").unlink()
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    again = fit(CONFIG, run_dir=copy, resume=True, progress=False)
    helpers.assert_identical(small.plain(again.state), small.plain(result.state))
    assert small.without_time(again.record.curve) == small.without_time(result.record.curve)


def test_resume_with_other_arrays_is_refused(trained):
    """Documented contract: one changed number makes another data set, and so another run."""
    _, folder = trained
    inputs, targets = jax.tree.map(np.copy, tuple(DATA.train))
    inputs["features"][3, 1] += 1e-3
    other = dataclasses.replace(CONFIG, data=ArrayData((inputs, targets), DATA.test))
    with pytest.raises(InputError, match=r"data\.digest: "):
        fit(other, run_dir=folder, resume=True, progress=False)


def test_a_first_loss_that_is_no_number_is_not_the_rates_fault():
    """Documented contract: what is wrong before any update is said so, and is no divergence, which a
    search would take for a rate too high. The same for a batch, or a test set, that weighs nothing."""
    inputs, targets = DATA.train
    nothing = targets | {"mask": np.zeros_like(targets["mask"])}
    broken = inputs | {"scale": np.full_like(inputs["scale"], np.nan)}
    cases = {
        "loss is nan at step 0, before any update": ((broken, targets), DATA.test),
        "weights .* sum to 0 on the first batch, before any update": ((inputs, nothing), DATA.test),
        "weights .* sum to 0 over the test set": (DATA.train, (inputs, nothing)),
    }
    for said, data in cases.items():
        config = dataclasses.replace(CONFIG, data=ArrayData(*data))
        with pytest.raises(InputError, match=said) as caught:
            fit(config, progress=False)
        assert not isinstance(caught.value, DivergedError)
        assert "lower" not in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def square(outputs, targets):
    return jnp.square(outputs - targets["y"]).mean(1)


def reads_accuracy(outputs, targets):
    return (outputs.argmax(-1) == targets).mean()


NUMBERS = ArrayData((np.ones((8, 4)), np.arange(8) % 3), (np.ones((5, 4)), np.arange(5) % 3))
REAL = ArrayData((np.ones((8, 4)), np.ones((8, 2))), (np.ones((5, 4)), np.ones((5, 2))))
FLAT = ArrayData((np.ones((8, 4)), np.ones(8)), (np.ones((5, 4)), np.ones(5)))
OWN = TrainConfig(data=NUMBERS, model=MLP((5,), 3), sites=("layer_0",), batch_size=8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"metrics": {"loss": square}}, "metrics has 'loss', which every run records"),
        ({"metrics": (("f", square), ("f", square))}, "metrics has 'f' twice"),
        ({"optimizer": 0.1}, "optimizer is a float; expected an Optimizer, or a transformation"),
        ({"optimizer": optax.sgd(0.1), "decay_fraction": 0.2}, "schedule is 'unknown, of a trans"),
        ({"num_tokens": 8}, "data is ArrayData, which has no tokens"),
        ({"loss": "nt_xent"}, "compares views of images and data is ArrayData"),
        ({"loss": square}, r"loss '.*test_own:square' does not run on outputs .*\(8, 3\).*check"),
        ({"loss": lambda o, t: t}, r"the loss is int32 \(8,\); expected real"),
        ({"metrics": {"f": square}}, "metric 'f' does not run on outputs"),
        ({"data": REAL}, r"'softmax_cross_entropy' reads labels, and .* float32 \(8, 2\)"),
        ({"data": REAL, "loss": "squared_error"}, "number of outputs to 2"),
        ({"data": FLAT, "loss": "squared_error"}, r"has targets \(8,\): give them.* an axis"),
        ({"model": MLP((5,), 2)}, r"outputs are \(8, 2\); data set 'arrays' needs \(8, 3\)"),
        ({"data": DATA}, r"Normed|MLP does not run on inputs \{'features': \(8, 4\)"),
        ({"data": DATA, "model": Normed(), "calling": Calling(call=call), "sites": ("hidden",)},
         r"'softmax_cross_entropy' reads one array of outputs, and these are \{'mean'"),
        ({"calling": Calling(tap=("logits",))}, "unknown output to tap 'logits'"),
        ({"calling": Calling(call=lambda m, x, train: m(x["ids"]))}, "MLP does not run on inputs"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_any_work(given, said):
    """Documented contract: one line that names what was given and what would do."""

    def tried():
        config = dataclasses.replace(OWN, **given)
        make_program(config, config.data.load(), config.num_steps(1), devices=jax.devices()[:1])

    with pytest.raises(InputError, match=said) as caught:
        tried()
    assert len(str(caught.value).splitlines()) == 1


@dataclasses.dataclass
class Listed:
    """A metric that equals others, and so does not hash."""

    weights: list[float]

    def __call__(self, outputs, targets):
        return outputs


def test_what_is_no_function_is_refused():
    """Documented contract, of who runs without the type checks of these tests."""
    with pytest.raises(InputError, match=r"loss is a int; expected a function"):
        check_loss(3)
    with pytest.raises(InputError, match="metric 'f' is a Listed, which cannot be hashed"):
        checked_metrics({"f": Listed([1.0])})
    for given in ({"f": 3}, (3,), {3: square}):
        with pytest.raises(InputError, match="metrics has .*expected functions"):
            checked_metrics(given)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [(optax.lbfgs(), "missing 2 required"), (optax.multi_transform({}, {"a": "b"}), r"\(")],
    ids=["asks for more", "other parameters"],
)
def test_an_optimiser_that_cannot_run_is_refused_before_any_work(tmp_path, optimizer, said):
    """Documented contract: before a file is written, in a line that says what it is given."""
    config = dataclasses.replace(OWN, optimizer=optimizer, alignment_examples=0)
    with pytest.raises(InputError, match=f"optimizer optax.*does not run.*{said}.*value") as caught:
        fit(config, run_dir=tmp_path / "run", progress=False)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_more_outputs_than_classes_found_will_do():
    """Documented contract: arrays may lack some of the classes that a model tells apart."""
    config = dataclasses.replace(OWN, model=MLP((5,), 7), metrics={"right": reads_accuracy})
    made = make_program(config, NUMBERS.load(), 1, devices=jax.devices()[:1])
    assert made.metric_names == ["loss", "right"]
    assert dataclasses.replace(config, metrics=None) != config


def test_a_record_tells_what_was_given():
    """Oracle: what another process would write, which has no addresses in common; other rates, other
    arrays and other functions are told apart, and a record that is older than a setting is not."""
    written = json.dumps(to_dict(CONFIG))
    assert "0x" not in written
    assert "test_own:masked_square" in written
    same = dataclasses.replace(
        CONFIG,
        data=ArrayData(drawn(0, TRAIN), drawn(1, TEST)),
        optimizer=optax.MultiSteps(
            optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.02)), 2
        ),
    )
    assert json.dumps(to_dict(same)) == written
    assert same.data == CONFIG.data
    assert len({CONFIG, dataclasses.replace(CONFIG, data=same.data)}) == 1
    other = dataclasses.replace(
        CONFIG, optimizer=optax.adam(0.01), loss=masked_distance, metrics=None
    )
    found = changes(to_dict(CONFIG), other)
    assert [one.partition(":")[0] for one in found] == ["loss", "metrics", "optimizer"]
    old = {name: value for name, value in to_dict(OWN).items() if name != "calling"}
    assert changes(old, OWN) == []


def test_functions_of_one_name_do_not_train_together():
    """Documented contract: runs that train together share one program, so two losses of one name, which
    a record cannot tell apart, would silently be the first one's."""
    first, second = (dataclasses.replace(CONFIG, loss=lambda o, t: o["mean"]) for _ in range(2))
    assert loop.differences(first, second) == ["loss: another function of the same name"]
    assert loop.differences(first, dataclasses.replace(first, seed=5)) == []
    faster = dataclasses.replace(OWN, optimizer=Optimizer(learning_rate=0.5))
    assert loop.differences(OWN, faster) == []


def test_the_command_line_changes_what_it_can():
    """Documented contract: options of numbers still work beside what is given in code, which has none."""
    found = parse_config(CONFIG, ["--batch-size", "4", "--calling.tap", "mean"])
    assert found.batch_size == 4
    assert found.calling == Calling(call=call, tap=("mean",))
    assert (found.loss, found.metrics, found.optimizer, found.data) == (
        CONFIG.loss, CONFIG.metrics, CONFIG.optimizer, DATA)  # fmt: skip
    assert parse_config(CONFIG, ["--loss", "squared_error"]).loss == "squared_error"
    with pytest.raises(InputError, match="unknown option '--optimizer.learning-rate'"):
        parse_config(CONFIG, ["--optimizer.learning-rate", "1"])
