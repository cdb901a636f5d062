"""How a model is called: modes, structures, random streams, state; and what is refused in a line."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dfa_jax.errors import InputError, SiteError
from dfa_jax.models import MLP, from_linen
from dfa_jax.rules import Backprop, FeedbackAlignment, functional
from dfa_jax.types import Batch
from tests import helpers


class Dropped(nn.Module):
    """Dropout by an argument, as most published modules have it."""

    flag: str = "train"

    @nn.compact
    def __call__(self, x, train: bool = False):
        h = nn.Dense(50, name="first")(x)
        return nn.Dense(3, name="readout")(nn.Dropout(0.5)(h, deterministic=not train))


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        h = nn.Dense(50, name="first")(x)
        return nn.Dense(3, name="readout")(nn.Dropout(0.5)(h, deterministic=deterministic))


@pytest.mark.parametrize("module", [Dropped(), Deterministic()])
def test_the_mode_is_set_where_the_module_has_an_argument_for_it(module):
    """Exact equivalence: training drops by the key's mask, evaluation drops nothing and asks for no
    key. A default left as it is would train without dropout, or evaluate with it, silently."""
    case = helpers.made(module, "first", helpers.images())
    x, key = case.batch.inputs, jax.random.key(1)
    mode = {"train": True} if isinstance(module, Dropped) else {"deterministic": False}
    variables = {"params": case.params}
    dropped = module.apply(variables, x, **mode, rngs={"dropout": key})
    np.testing.assert_array_equal(case.model.apply(case.params, x, key=key, train=True), dropped)
    np.testing.assert_array_equal(case.model.apply(case.params, x), module.apply(variables, x))


class Noisy(nn.Module):
    """Random streams of its own names, one of them in evaluation too."""

    @nn.compact
    def __call__(self, x, train: bool):
        h = nn.Dense(4, name="first")(x)
        if train:
            h = h + jax.random.normal(self.make_rng("noise"), h.shape)
        h = h + jax.random.normal(self.make_rng("sampling"), h.shape)
        return nn.Dense(3, name="readout")(h)


def test_random_streams_are_found():
    """Documented contract: those that the module asks for, by mode; a pass without a key that needs
    one is refused by the name of the stream."""
    case = helpers.made(Noisy(), "first", helpers.images())
    assert case.model.streams == ("dropout", "noise", "sampling")
    assert case.model.eval_streams == ("sampling",)
    with pytest.raises(InputError, match=r"random numbers in evaluation too \(sampling\).*key="):
        case.model.apply(case.params, case.batch.inputs)
    first, second = (
        case.model.apply(case.params, case.batch.inputs, key=jax.random.key(i)) for i in (0, 1)
    )
    assert np.abs(first - second).max() > 0.1


class Normed(nn.Module):
    """Batch statistics, a constant, and what is sown under two names."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        scale = self.variable("constants", "scale", lambda: jnp.full((), 2.0))
        h = nn.Dense(6, name="first")(x) * scale.value
        h = nn.BatchNorm(use_running_average=not train, momentum=0.5, name="norm")(h)
        self.sow("diagnostics", "mean", h.mean())
        self.sow("intermediates", "h", h)
        return nn.Dense(3, name="readout")(h)


def test_state_is_found_and_sown_values_are_not_state():
    """Closed form: after a step the running mean is half of the batch's, in training alone; constants
    stay; what is only sown is left out."""
    case = helpers.made(Normed(), "first", helpers.images())
    assert case.model.collections == ("batch_stats", "constants")
    start = functional.init(Backprop(), case.model, helpers.LOSS, jax.random.key(0), case.batch)
    found = functional.estimate(
        Backprop(), case.model, helpers.LOSS, *start, case.batch, jax.random.key(1)
    )
    dense = start.params["first"]
    h = 2 * (case.batch.inputs @ dense["kernel"] + dense["bias"][None])
    np.testing.assert_allclose(
        found.model_state["batch_stats"]["norm"]["mean"], h.mean(0) / 2, rtol=1e-5, atol=1e-6
    )
    assert found.model_state["constants"]["scale"] == 2
    with pytest.raises(InputError, match=r"variables besides its parameters \(batch_stats, const"):
        case.model.apply(start.params, case.batch.inputs)
    evaluated = case.model.apply(start.params, case.batch.inputs, state=found.model_state)
    variables = {"params": start.params, **found.model_state}
    expected = case.model.module.apply(variables, case.batch.inputs, train=False)
    np.testing.assert_array_equal(evaluated, expected)


class Growing(nn.Module):
    """A cache that is longer after each pass."""

    @nn.compact
    def __call__(self, x):
        cache = self.variable("cache", "seen", lambda: jnp.zeros((1, 3)))
        cache.value = jnp.concatenate([cache.value, x[:1, :3]])
        return nn.Dense(3)(nn.Dense(4, name="first")(x))


def test_a_collection_that_changes_its_shape_is_refused():
    """Documented contract: a step could not carry it on; the line says both shapes."""
    with pytest.raises(
        InputError, match=r"'cache' of Growing are float32\[2, 3\] before.*\[3, 3\]"
    ):
        from_linen(Growing(), "first", jnp.ones((2, 5)))


class Unhashable(nn.Module):
    """A field that has no hash."""

    table: np.ndarray

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(4, name="first")(x @ self.table)
        return nn.Dense(3, name="readout")(jnp.tanh(h))


def test_a_module_without_a_hash_needs_no_static_argument():
    """Exact equivalence: jitted twice, with one trace, equals the module's own gradient."""
    module = Unhashable(np.eye(8, dtype=np.float32))
    case = helpers.made(module, "first", helpers.images())
    assert hash(case.model) == hash(case.model)
    assert case.model == case.model.at("first")
    estimate = jax.jit(functional.value_and_grad(Backprop(), case.model, helpers.LOSS))
    found = estimate(case.params, (), (), case.batch, jax.random.key(0))[1]
    helpers.assert_close(found, helpers.backprop(case), 1e-6)


def test_a_bound_model_is_no_static_argument():
    """Documented contract: a state in a hash would be a stale constant of a cached trace."""
    model = helpers.mlp().model
    with pytest.raises(TypeError, match="no static argument"):
        hash(model.bind(key=jax.random.key(0)))
    assert hash(model.bind()) == hash(model)


class Pair(nn.Module):
    """Called by keyword; returns a pair."""

    @nn.compact
    def __call__(self, *, left, right):
        h = nn.Dense(4)(left) + nn.Dense(4)(right)
        return h, {"tanh": jnp.tanh(h), "count": jnp.zeros((), int)}


class Paired(nn.Module):
    @nn.compact
    def __call__(self, x):
        _, more = Pair(name="pair")(left=x, right=2 * x)
        return nn.Dense(3, name="readout")(more["tanh"])


def test_arrays_of_a_place_are_named():
    """Documented contract: of an output by index and key, of an input by its keyword; where there are
    several and none is named, all are listed."""
    x = jnp.ones((2, 5))
    model = from_linen(Paired(), ["pair:1/tanh", "pair:input:left"], x)
    assert model.sites == ("pair:input:left", "pair:1/tanh")
    with pytest.raises(
        SiteError, match=r"'pair' has 2 .*'0' \(2, 4\), '1/tanh' \(2, 4\).*'pair:0'"
    ):
        from_linen(Paired(), "pair", x)
    with pytest.raises(SiteError, match="'pair:input' has 2 .*'left'.*'right'"):
        from_linen(Paired(), "pair:input", x)
    with pytest.raises(SiteError, match="array at site 'pair' '1/tan'; did you mean '1/tanh'"):
        from_linen(Paired(), "pair:1/tan", x)


class Heads(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Dense(4, name="first")(x)
        return {"logits": nn.Dense(3)(h), "value": nn.Dense(1)(h)[:, 0], "steps": jnp.zeros(2, int)}


REFUSED = {
    "an NNX module": (
        lambda: from_linen(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), "*", jnp.ones((1, 2))),
        "Linear is a module of Flax NNX, which is not supported yet",
    ),
    "no module": (
        lambda: from_linen(MLP, "layer_0", jnp.ones((1, 2))),
        "the module is a type; expected an instance of flax.linen.Module",
    ),
    "another structure": (
        lambda: helpers.mlp().model.apply(helpers.mlp().params, {"x": jnp.ones((16, 8))}),
        r"the inputs are PyTreeDef\(\{'x': \*\}\) and the model was made with PyTreeDef\(\*\)",
    ),
    "an unknown output": (
        lambda: from_linen(Heads(), "first", jnp.ones((2, 5)), tap="logit"),
        "unknown output to tap 'logit'; did you mean 'logits'",
    ),
    "axes that outputs do not share": (
        lambda: from_linen(Heads(), "first", jnp.ones((2, 5)), batch_axes=2),
        r"batch_axes is 2, and the outputs are 'logits' \(2, 3\), 'value' \(2,\)",
    ),
    "positions under batch statistics": (
        lambda: from_linen(Normed(), "first", jnp.ones((2, 5)), independent_axes=1),
        "independent_axes is 1, and the module has BatchNorm",
    ),
    "more independent axes than there are": (
        lambda: from_linen(MLP((4,), 2), "layer_0", jnp.ones((2, 5)), independent_axes=2),
        r"independent_axes is 2; expected 0 \(all is coupled\) to 1",
    ),
    "an unknown collection of losses": (
        lambda: from_linen(Normed(), "first", jnp.ones((2, 5)), auxiliary="losses"),
        "unknown collection of sown losses 'losses'.*diagnostics",
    ),
    "an unknown parameter": (
        lambda: from_linen(MLP((4,), 2), "layer_0", jnp.ones((2, 5)), true_transpose="*/scal"),
        r"unknown parameter '\*/scal'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_so_in_one_line(name):
    """Documented contract: what was found, what was expected, the remedy; no raw error of Flax."""
    call, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        call()


def test_several_outputs_want_a_tap_where_an_error_is_read():
    """Documented contract: backpropagation needs none; direct feedback lists the outputs."""
    batch = Batch(jnp.ones((2, 5)), jnp.zeros(2, int))
    model = from_linen(Heads(), "first", batch.inputs)
    key = jax.random.key(0)

    def loss(outputs, targets):
        return helpers.LOSS(outputs["logits"], targets) + outputs["value"]

    functional.init(Backprop(), model, loss, key, batch)
    from dfa_jax.rules import DirectFeedbackAlignment

    with pytest.raises(InputError, match=r"2 outputs .*'logits' \(2, 3\), 'value' \(2,\).*tap="):
        functional.init(DirectFeedbackAlignment(), model, loss, key, batch)


class Scaled(nn.Module):
    """A layer scale, which is no normalisation of Flax's."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(4, name="first")(x)
        h = nn.LayerNorm(name="norm")(h) * self.param("gamma", nn.initializers.ones, (1, 4))
        return nn.Dense(3, name="readout")(h)


def test_chain_rules_name_what_they_cannot_replace():
    """Documented contract: named, unless its true transpose is accepted; a normalisation keeps its
    own. Exact equivalence: with `B = W` the accepted model is backpropagation."""
    case = helpers.made(Scaled(), "first", helpers.images())
    with pytest.raises(InputError, match=r"passes the parameters 'gamma' .*true_transpose"):
        FeedbackAlignment().init(jax.random.key(0), *case)
    accepted = case._replace(
        model=from_linen(Scaled(), "first", case.batch.inputs, true_transpose="gamma")
    )
    own = {name: case.params[name]["kernel"] for name in ("first", "readout")}
    found = helpers.estimate(FeedbackAlignment(), accepted, case.params, own).grads
    helpers.assert_close(found, helpers.backprop(case), 1e-5)


class Cells(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="readout")(nn.RNN(nn.LSTMCell(4), name="lstm")(x))


def test_a_site_in_a_cell_is_refused_with_advice_that_can_be_followed():
    """Documented contract: a loop over time has no error for each step; the place is outside, and
    nobody is asked to change Flax's own loop."""
    with pytest.raises(SiteError, match="not over layers.*outside the loop") as error:
        from_linen(Cells(), "LSTMCell_0/hi", jnp.ones((2, 4, 5)))
    assert "variable_axes" not in str(error.value)
