"""The linear probe against a minimum that SciPy finds, and the readout that learns beside a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from dfa_jax.errors import InputError
from dfa_jax.models import MLP, from_linen
from dfa_jax.train.probe import linear_probe
from dfa_jax.train.readout import OnlineReadout, Readout, features, place_readout
from dfa_jax.types import Batch
from tests import helpers


def clusters(seed, num, distance):
    """Three overlapping clouds in eight dimensions of unequal sizes, shifted away from zero."""
    random = np.random.default_rng(seed)
    labels = random.integers(3, size=num)
    x = random.normal(size=(num, 8)) + distance * np.eye(8)[labels] + 1
    return Batch(jnp.asarray(x * np.geomspace(0.1, 5, 8), jnp.float32), jnp.asarray(labels))


def trained():
    """A perceptron with random parameters whose readout reads 6 units."""
    case = helpers.made(MLP((6,), 4), "layer_0", clusters(0, 4, 1.0))
    return case.model, case.params


def best_classifier(z, labels, l2):
    """Kernel and bias at the minimum, by SciPy's BFGS in double precision."""
    onehot = np.eye(3)[labels]

    def objective(flat):
        W, b = flat[:-3].reshape(-1, 3), flat[-3:]
        log_p = special.log_softmax(z @ W + b, -1)
        error = (np.exp(log_p) - onehot) / len(z)
        grad = np.concatenate([(z.T @ error + l2 * W).ravel(), error.sum(0)])
        return -(onehot * log_p).sum() / len(z) + l2 / 2 * (W**2).sum(), grad

    found = optimize.minimize(objective, np.zeros((z.shape[1] + 1) * 3), jac=True, tol=1e-10)
    return found.x[:-3].reshape(-1, 3), found.x[-3:]


@pytest.mark.parametrize("l2", [1e-4, 1.0])
def test_probe_finds_the_minimum(l2):
    """Independent implementation: the features in NumPy and the minimum by SciPy, in double
    precision; the two may disagree on an example at the border. At `l2 = 1` the smallest class is
    given up, which a decay that was scaled otherwise would not do."""
    model, params = trained()
    train, test = clusters(1, 300, 1.5), clusters(2, 200, 1.5)
    found = linear_probe(model, params, train, test, l2=l2)
    dense = jax.tree.map(np.array, params)["layer_0"]["Dense_0"]
    h = [np.tanh(np.asarray(b.inputs) @ dense["kernel"] + dense["bias"]) for b in (train, test)]
    z = [(x - h[0].mean(0)) / h[0].std(0) for x in h]
    W, b = best_classifier(z[0], np.asarray(train.targets), l2)
    for accuracy, x, batch in zip(found[:2], z, (train, test), strict=True):
        expected = ((x @ W + b).argmax(-1) == np.asarray(batch.targets)).mean()
        assert accuracy == pytest.approx(expected, abs=1.5 / len(batch.targets))
    assert found.is_converged


def test_probe_moves_no_parameter_and_reads_the_place_it_is_given():
    """Exact equality of the parameters; closed case: the inputs of the first layer are separable,
    constant features (a unit that is off) are no division by zero."""
    model, params = trained()
    before = helpers.to_float64(params)
    train = clusters(1, 60, 40.0)
    train = train._replace(inputs=train.inputs.at[:, 7].set(3.0))
    found = linear_probe(model, params, train, train, place="layer_0:input")
    assert found.train_accuracy == 1
    helpers.assert_identical(helpers.to_float64(params), before)


def test_probe_refuses_what_it_cannot_fit():
    """Documented contract."""
    model, params = trained()
    batch = clusters(1, 20, 1.0)
    with pytest.raises(InputError, match="no readout at 'head' of MLP: .*did you mean"):
        linear_probe(model, params, batch, batch, place="head")
    with pytest.raises(InputError, match=r"place of the readout is '\*:input', which is .*one"):
        linear_probe(model, params, batch, batch, place="*:input")
    with pytest.raises(InputError, match="l2 is 0.0; expected a positive number"):
        linear_probe(model, params, batch, batch, l2=0.0)
    same = batch._replace(targets=np.ones(20, int))
    with pytest.raises(InputError, match=r"label \[1\]; expected at least two classes"):
        linear_probe(model, params, same, batch)
    with pytest.raises(InputError, match=r"targets are float32 \(20, 8\); a probe expects one int"):
        linear_probe(model, params, batch._replace(targets=batch.inputs), batch)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    with pytest.raises(InputError, match="features at 'readout:input' are not finite"):
        linear_probe(model, broken, batch, batch)


def test_a_stack_of_layers_is_no_place():
    """Documented contract: a stacked place has as many features as layers."""
    case = helpers.scanned()
    with pytest.raises(InputError, match="'layers', which is a stack of layers; expected one sub"):
        place_readout(case.model, "layers")


def test_readout_steps_down_the_gradient(x64):
    """Closed form: `W - eta h^T (softmax - onehot) / N`, with `h` by NumPy and `eta` by the features'
    length; loss and accuracy are those before the step. From zero the loss is log(classes)."""
    model, params = trained()
    params = jax.tree.map(jnp.asarray, helpers.to_float64(params))
    batch = clusters(1, 30, 1.0)
    at = place_readout(model, "readout:input")
    readout = Readout(at, 3, learning_rate=0.3)
    weights, seen = jax.jit(
        lambda p: readout.step(readout.init(at, p, batch.inputs), at, p, batch)
    )(params)
    np.testing.assert_allclose(seen["loss"], np.log(3), rtol=1e-12)
    np.testing.assert_allclose(seen["accuracy"], (batch.targets == 0).mean(), rtol=1e-12)
    dense = jax.tree.map(np.array, params)["layer_0"]["Dense_0"]
    h = np.tanh(np.asarray(batch.inputs, float) @ dense["kernel"] + dense["bias"])
    rate = 0.3 / (1 + (h**2).sum(-1).mean())
    error = (1 / 3 - np.eye(3)[np.asarray(batch.targets)]) / 30
    helpers.assert_close(weights["kernel"], -rate * h.T @ error, 1e-6)  # inputs are float32
    helpers.assert_close(weights["bias"], -rate * error.sum(0), 1e-6)


def test_readout_learns_what_is_separable():
    """Closed case: clouds far apart, read at the inputs, are all told apart after 200 steps."""
    model, params = trained()
    batch = clusters(1, 60, 10.0)
    at = place_readout(model, "layer_0:input")
    readout = Readout(at, 3, learning_rate=2.0)

    def step(weights, _):
        return readout.step(weights, at, params, batch)

    start = readout.init(at, params, batch.inputs)
    _, seen = jax.lax.scan(step, start, length=200)
    assert seen["accuracy"][-1] == 1
    assert seen["loss"][-1] < 0.2 * seen["loss"][0]


def test_no_derivative_reaches_the_network():
    """Proof of absence: bits. The readout looks on; a gradient from labels would make a contrastive
    run a supervised one."""
    model, params = trained()
    batch = clusters(1, 12, 1.0)
    at = place_readout(model, "readout:input")
    readout = Readout(at, 3, learning_rate=0.1)
    weights = helpers.normals(readout.init(at, params, batch.inputs), 3)

    def total(params):
        logits, seen = (
            readout.logits(weights, at, params, batch.inputs),
            features(at, params, batch.inputs),
        )
        return jnp.square(logits).sum() + seen.sum()

    grads = jax.jit(jax.grad(total))(params)
    helpers.assert_identical(grads, jax.tree.map(np.zeros_like, params))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_learning_rate_that_cannot_be(rate):
    """Documented contract."""
    with pytest.raises(InputError, match=r"readout.learning_rate is .*expected a positive finite"):
        OnlineReadout(learning_rate=rate)


def test_any_model_will_do():
    """The contract: a `from_linen` model of the user's own, at the output of a submodule."""
    x = jnp.linspace(-1, 1, 40)[:, None]
    model = from_linen(MLP((4, 4), 2), "layer_0", x)
    batch = Batch(x, np.arange(40) // 20)
    params = jax.jit(model.init)(jax.random.key(0), x)
    assert linear_probe(model, params, batch, batch, place="layer_1").test_accuracy > 0.95


def test_one_step_of_the_online_readout():
    """Oracle: independent implementation; the softmax's error on the features, in NumPy, with the
    step divided by the features' mean squared length, so that ten times the features move alike."""
    batch = helpers.images(num=6, shape=(3,), classes=2)
    at, params, _ = helpers.made(MLP((4,), 2), "readout:input", batch)
    readout, labels = Readout(at, num_classes=2, learning_rate=0.7), np.asarray(batch.targets)
    start = {"kernel": np.float32([[0.1, -0.2]] * 4), "bias": np.zeros(2, np.float32)}
    step = jax.jit(lambda p: (*readout.step(start, at, p, batch), features(at, p, batch.inputs)))
    for length in (1.0, 10.0):
        moved, found, h = step(jax.tree.map(lambda w, length=length: length * w, params))
        h = np.asarray(h, np.float64)
        logits = h @ np.asarray(start["kernel"], np.float64)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        error = (p - np.eye(2)[labels]) / 6
        rate = 0.7 / (1 + np.square(h).sum(-1).mean())
        np.testing.assert_allclose(moved["kernel"], start["kernel"] - rate * h.T @ error, atol=1e-6)
        np.testing.assert_allclose(moved["bias"], -rate * error.sum(0), atol=1e-6)
        np.testing.assert_allclose(
            found["loss"], -np.log(p[np.arange(6), labels]).mean(), rtol=1e-5
        )
