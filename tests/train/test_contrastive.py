"""Contrastive runs and augmented ones: what a step trains on, what stays out of the network."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from dfa_jax.data import GaussianTargets, ImageData
from dfa_jax.data.augment import Augmentation, two_views
from dfa_jax.errors import InputError
from dfa_jax.keys import named_key
from dfa_jax.losses import LOSSES
from dfa_jax.models import LocalMixer, from_linen
from dfa_jax.optim import Optimizer
from dfa_jax.rules import ActivityForwardGradient, Backprop, LocalLosses, functional
from dfa_jax.train import TrainConfig, checkpoint, compiled, fit, init_state, loop, sharding
from dfa_jax.train.ensemble import fit_ensemble
from dfa_jax.train.program import make_program
from dfa_jax.train.readout import OnlineReadout
from dfa_jax.train.step import train_step
from dfa_jax.train.views import Views
from dfa_jax.types import Batch
from tests import helpers
from tests.train import small

CROP = Augmentation(crop_min_area=0.4)
CONFIG = TrainConfig(
    data=ImageData(num_train=256, num_test=64),
    model=LocalMixer(2, 2, 16, 2, 8, zero_readout=False),
    sites=("block_*/group_mixing",),
    blocks=("block_*",),
    rule=LocalLosses(
        estimator=ActivityForwardGradient(noise="rademacher", relu_mask=True, sharing="pairs"),
        patchwise=True,
        num_groups=2,
    ),
    loss="nt_xent",
    augment=CROP,
    second_view=CROP,
    optimizer=Optimizer(learning_rate=3e-3),
    batch_size=32,
    num_epochs=3,
    alignment_examples=0,
)


def program(config=CONFIG, on=None):
    """What `fit` compiles, on a mesh of one's own."""
    made = make_program(config, config.data.load(), num_steps=24)
    return dataclasses.replace(made, mesh=on or small.mesh())


def stored(config=CONFIG, num=32):
    """The first training examples."""
    return jax.tree.map(lambda a: jnp.asarray(a[:num]), config.data.load().train)


@pytest.mark.parametrize("standardize", ["pixel_range", "scalar", "channel"])
def test_views_are_made_of_pixels(standardize):
    """Independent route: the same set loaded in [0, 1], `two_views`, standardised in NumPy. Crops
    do not commute with a shift at a pad, nor solarising with any."""
    changes = Augmentation(crop_min_area=0.4, solarize=0.5), Augmentation(pad=2)
    pixels = dataclasses.replace(CONFIG.data, standardize="pixel_range").load().train.inputs
    dataset = dataclasses.replace(CONFIG.data, standardize=standardize).load()
    batch = jax.tree.map(lambda a: jnp.asarray(a[:16]), dataset.train)
    key = jax.random.key(3)
    found = jax.jit(Views.of(dataset, *changes))(key, batch)

    views = jax.jit(two_views, static_argnums=(2, 3))
    expected = np.asarray(views(named_key(key, "views"), pixels[:16], *changes))
    mean, deviation = {
        "pixel_range": (0, 1),
        "scalar": (pixels.mean(), pixels.std()),
        "channel": (pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))),
    }[standardize]
    helpers.assert_close(found.inputs, (expected - mean) / deviation, 1e-5)
    np.testing.assert_array_equal(found.targets, np.repeat(batch.targets, 2))


def test_views_do_not_depend_on_the_devices_nor_on_the_rest_of_the_batch():
    """Exact equivalence with one device. A draw that followed the device would make a result of
    the machine's size."""
    views, batch, key = program().views, stored(), jax.random.key(1)
    one = jax.jit(views)(key, batch)
    split = jax.jit(views)(key, jax.device_put(batch, sharding.over_batch(small.mesh(8))))
    helpers.assert_close(split, one, 1e-6)
    first = jax.jit(views)(key, jax.tree.map(lambda a: a[:8], batch))
    helpers.assert_close(first, jax.tree.map(lambda a: a[:16], one), 1e-6)
    assert not np.allclose(one.inputs[0::2], one.inputs[1::2])
    other = jax.jit(views)(jax.random.key(2), batch)
    assert not np.allclose(other.inputs, one.inputs)


def test_both_views_of_an_image_get_the_same_noise():
    """Closed form: the error at a site is a scalar times the noise, example by example, so those of
    the two views are parallel if, and only if, they share it."""
    of, loss = program(), LOSSES["nt_xent"]

    @jax.jit
    def sent(keys, images):
        batch = of.views(keys[0], images)
        parts = of.model, loss, of.model.init(keys[1], batch.inputs), (), (), batch, keys[2]
        rules = {name: ActivityForwardGradient(sharing=name) for name in ("pairs", "none")}
        return {name: functional.estimate(rule, *parts).errors for name, rule in rules.items()}

    errors = sent(jax.random.split(jax.random.key(0), 3), stored(num=8))
    for site in of.model.sites:
        cosine = {name: np.abs(cosine_of_pairs(error[site])) for name, error in errors.items()}
        np.testing.assert_allclose(cosine["pairs"], 1, atol=1e-5)
        assert cosine["none"].max() < 0.9


def cosine_of_pairs(error):
    """Between the rows of the two views, image by image."""
    pairs = np.asarray(error, np.float64).reshape(8, 2, -1)
    unit = pairs / np.linalg.norm(pairs, axis=-1, keepdims=True)
    return (unit[:, 0] * unit[:, 1]).sum(-1)


def run(on=None, num_steps=4, **changes):
    """Some steps of gradient descent on a mesh."""
    config = dataclasses.replace(CONFIG, optimizer=Optimizer("sgd", learning_rate=0.05), **changes)
    of = program(config, on)
    data = jax.device_put(config.data.load().train, sharding.replicated(of.mesh))
    example = jax.tree.map(lambda a: a[:32], data)
    state = loop.draw_state(jax.random.key(0), None, example, program=of)
    rows = np.random.default_rng(0).integers(0, 256, (num_steps, 32)).astype(np.int32)
    return loop.run_steps(state, data, rows, num_steps, program=of)


@pytest.mark.slow
def test_mesh_does_not_matter():
    """Exact equivalence with one device, up to the order of float32 sums: views, noise, negatives
    and readout of a batch that is split eight ways. Parameters are one vector here, for a bias in
    front of a normalisation has no gradient but rounding."""
    one, eight = run(), run(small.mesh(8))
    vectors = [ravel_pytree(state.params)[0] for state, _ in (eight, one)]
    helpers.assert_close(*vectors, 1e-5)
    helpers.assert_close(eight[0].readout, one[0].readout, 1e-4)
    np.testing.assert_allclose(eight[1]["loss"], one[1]["loss"], rtol=1e-5)


def test_readout_leaves_the_network_alone():
    """Exact equality, in bits: the same steps with another learning rate of the readout, and without
    a readout; on the images themselves in place of views."""
    parts = {}
    for name, rate in {"slow": 0.1, "fast": 0.5}.items():
        readout = OnlineReadout(learning_rate=rate)
        of = program(dataclasses.replace(CONFIG, rule=Backprop(), readout=readout))
        parts[name] = of.parts | {"views": None}
    parts["none"] = parts["slow"] | {"readout": None}

    @jax.jit
    def begin(key, batch):
        initial = ("model", "rule", "loss_fn", "tx", "readout")
        return init_state(key, batch, **{name: parts["slow"][name] for name in initial})

    @jax.jit
    def steps(states, batch):
        return {name: train_step(states[name], batch, **parts[name])[0] for name in parts}

    batch = stored()
    start = begin(jax.random.key(0), batch)
    states = dict.fromkeys(parts, start)
    for _ in range(2):
        states = steps(states, batch)
    for name in ("fast", "none"):
        helpers.assert_identical(states[name].params, states["slow"].params)
    assert not np.array_equal(states["fast"].readout["kernel"], states["slow"].readout["kernel"])
    helpers.assert_identical(states["none"].readout, start.readout)


def test_a_plain_step_is_the_program_that_it_was():
    """Exact equality of the lowered program with the step written without views and readout: runs
    made before there were any keep their numbers."""
    config = small.config("direct_feedback_alignment")
    of, batch = small.program(config, small.mesh()), jax.tree.map(lambda a: a[:16], stored())
    made = make_program(config, config.data.load(), of.num_steps)
    assert (made.views, made.readout) == (None, None)
    state = small.state(of)
    assert state.readout == ()
    parts = {**of.parts}

    def as_before(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        found = functional.estimate(
            of.rule, of.model, parts["loss_fn"], state.params, state.rule_state, (), batch, key
        )
        right = (found.outputs.argmax(-1) == batch.targets).astype(jnp.float32).mean()
        updates, opt_state = parts["tx"].update(found.grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = state._replace(
            step=state.step + 1, params=params, rule_state=found.rule_state, opt_state=opt_state
        )
        return state, {"loss": found.loss, "accuracy": right}

    def step(state, batch):
        return train_step(state, batch, **parts)

    as_before.__name__ = step.__name__
    texts = [jax.jit(f).lower(state, batch).as_text() for f in (step, as_before)]
    assert texts[0] == texts[1]


@pytest.fixture(scope="module")
def straight():
    return fit(CONFIG, progress=False)


def test_a_contrastive_run_learns_features(straight):
    """Threshold: chance is 0.1, and the probe of seeds 0 to 3 gave 0.48 to 0.56 on the test set,
    0.80 to 0.87 on the training set; the loss of a network that tells no image from another is
    log(63) = 4.14, theirs ended at 3.87 to 3.99."""
    curve = straight.record.curve
    assert curve[-1].train_loss < min(curve[0].train_loss, np.log(63))
    assert curve[-1].metrics["probe_test_accuracy"] > 0.35
    assert curve[-1].metrics["probe_train_accuracy"] > 0.6
    assert "probe_test_accuracy" not in curve[0].metrics
    assert curve[-1].test_loss < np.log(10)  # the readout's: it starts there
    assert straight.state.params["readout"]["kernel"].shape == (16, 8)
    assert straight.state.readout["kernel"].shape == (16, 10)


def test_evaluation_is_that_of_the_readout(straight):
    """Independent implementation: Flax's own capture of the readout's inputs, the rest in NumPy."""
    test = CONFIG.data.load().test
    captured = {
        "capture_intermediates": lambda module, _: module.name == "block_1",
        "mutable": ["intermediates"],
    }
    apply = jax.jit(functools.partial(CONFIG.model.apply, **captured))
    _, seen = apply({"params": straight.state.params}, test.inputs)
    h = np.asarray(seen["intermediates"]["block_1"]["__call__"][0], np.float64).mean(1)
    weights = helpers.to_float64(straight.state.readout)
    logits = h @ weights["kernel"] + weights["bias"]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    final = straight.record.final
    np.testing.assert_allclose(
        final.test_loss, -log_p[np.arange(len(h)), test.targets].mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        final.test_accuracy, (logits.argmax(-1) == test.targets).mean(), rtol=1e-6
    )


def test_sites_are_measured_on_views():
    """Documented contract: an alignment of every site; a batch of single images would be refused by
    the loss, which compares rows in pairs."""
    of = program()
    state = jax.eval_shape(
        functools.partial(loop.draw_state, program=of), jax.random.key(0), None, stored()
    )
    found = jax.eval_shape(
        functools.partial(compiled.measure_sites, program=of), state, stored(num=7)
    )
    assert {f"gradient_alignment/{site}" for site in of.model.sites} <= found.keys()


def test_a_stopped_run_goes_on_bit_for_bit(straight, tmp_path, monkeypatch):
    """Exact equivalence with the run left alone: views follow the step, the readout is in the
    checkpoint."""

    class StopError(Exception):
        pass

    save = checkpoint.Checkpoints.save

    def save_and_stop(self, state, progress):
        save(self, state, progress)
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", save_and_stop)
        with pytest.raises(StopError):
            fit(CONFIG, run_dir=tmp_path / "run", progress=False)
    resumed = fit(
        CONFIG, run_dir=tmp_path / "run", resume=True, save_seconds=np.inf, progress=False
    )
    assert len((tmp_path / "run" / "curve.jsonl").read_text().splitlines()) == 3
    helpers.assert_identical(small.plain(resumed.state), small.plain(straight.state))
    curve = small.without_time(straight.record.curve)
    assert small.without_time(resumed.record.curve) == curve


def test_a_supervised_checkpoint_has_no_readout(tmp_path):
    """Documented contract: what is stored is the state's parts that there are."""
    state = small.state(small.program(small.config(), small.mesh()))
    with checkpoint.Checkpoints(tmp_path / "checkpoints", small.config()) as checkpoints:
        checkpoints.save(state, checkpoint.Progress())
    (metadata,) = (tmp_path / "checkpoints").glob("*/state/_METADATA")
    stored = json.loads(metadata.read_text())["tree_metadata"].values()
    parts = {leaf["key_metadata"][0]["key"] for leaf in stored}
    assert parts == {"step", "params", "rule_state", "opt_state", "key"}


def test_augmentation_of_a_supervised_run():
    """Absence of equality: other images are seen, and only in training; equality of a second run."""
    plain = small.config()
    config = dataclasses.replace(plain, augment=Augmentation(pad=2))
    found, again, without = (fit(c, progress=False) for c in (config, config, plain))
    helpers.assert_identical(small.plain(found.state), small.plain(again.state))
    assert found.record.final.train_loss != without.record.final.train_loss
    assert found.state.readout == ()


@dataclasses.dataclass(frozen=True)
class Mislabelled(ImageData):
    """Digits of which one has a label that there is not."""

    label: int = 10
    split: str = "train"

    def load(self):
        """The digits, but for one label."""
        dataset = super().load()
        batch = getattr(dataset, self.split)
        labels = batch.targets.copy()
        labels[3] = self.label
        return dataset._replace(**{self.split: Batch(batch.inputs, labels)})


@pytest.mark.parametrize(
    ("split", "label", "range_"), [("train", 10, "0 to 10"), ("test", -1, "-1 to 9")]
)
def test_labels_outside_of_the_classes_are_refused(split, label, range_):
    """Documented contract: `softmax_cross_entropy` would give NaN or the loss of another class."""
    data = Mislabelled(num_train=64, num_test=24, label=label, split=split)
    for train in (fit, lambda c, progress: fit_ensemble(c, [0])):
        with pytest.raises(
            InputError, match=f"labels {range_} in its {split} split; expected 0 to 9"
        ):
            train(small.config(data=data, feedback_seed=0), progress=False)


WRONG = {
    "one image": ({"batch_size": 1}, "batch_size is 1, and loss 'nt_xent' compares"),
    "one to measure": ({"alignment_examples": 1}, "alignment_examples is 1, .* at least 2"),
    "zero readout": (
        {"model": LocalMixer(2, 2, 16, 2, 8)},
        "zero_readout is true: .* set it to false",
    ),
    "no images": (
        {"data": GaussianTargets()},
        "augment changes images and data is GaussianTargets.*choose ImageData",
    ),
    "no images to compare": (
        {"data": GaussianTargets(), "augment": Augmentation(), "second_view": Augmentation()},
        "'nt_xent' compares views of images and data is GaussianTargets.*another loss",
    ),
    "no such place": (
        {"readout": OnlineReadout(place="redout:input")},
        "no readout at 'redout:input' of LocalMixer: .*did you mean",
    ),
    "colours of grey images": (
        {"second_view": Augmentation(grayscale=0.2)},
        r"images have 1 channel\(s\), but color_jitter and grayscale expect 3",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_run_is_refused_before_any_work(name, tmp_path):
    """Documented contract: one line with what was given, what is expected and the remedy, and no
    run directory."""
    changes, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        fit(dataclasses.replace(CONFIG, **changes), run_dir=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_an_ensemble_does_not_compare_views():
    """Documented contract."""
    with pytest.raises(
        InputError, match="loss is 'nt_xent', and an ensemble is measured on single"
    ):
        fit_ensemble(dataclasses.replace(CONFIG, feedback_seed=0), [0, 1])


def test_model_of_the_run_has_its_sites():
    """The program's model is made for two rows an image, and is that of `from_linen`."""
    like = jax.ShapeDtypeStruct((64, 8, 8, 1), np.float32)
    expected = from_linen(CONFIG.model, CONFIG.sites, like, blocks=CONFIG.blocks)
    assert program().model == expected
