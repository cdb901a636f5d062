"""Published models, unchanged, under every rule of the registry, through `from_linen` and `value_and_grad`."""

import functools

import jax
import numpy as np
import pytest

from dfa_jax import from_linen, tree
from dfa_jax.autodiff.objective import HEADS
from dfa_jax.errors import InputError
from dfa_jax.rules import (
    RULES,
    BatchwiseRandomSign,
    ChainRule,
    FeedbackAlignment,
    FixedRandomSign,
    KolenPollack,
    UniformSign,
)
from dfa_jax.rules.base import kernels
from dfa_jax.rules.functional import value_and_grad
from dfa_jax.types import Batch, Loss
from tests import helpers
from tests.published import plain
from tests.published.models import BATCH, MODELS, gpt2, jax_resnet, nano_moe, resnet

pytestmark = pytest.mark.slow

IN_CI = (gpt2, resnet)  # tied, masked, of a class of its own; batch statistics
KEY = 5

CHAINS = [name for name, rule in RULES.items() if issubclass(rule, ChainRule)]
SITES = ("shallow", "direct_feedback_alignment", "direct_random_target_projection")
SENT = (*SITES, "activity_forward_gradient", "gradient_guess")
REFUSED = {("direct_random_target_projection", make) for make in (gpt2, nano_moe)}


def _cells(rules, without=frozenset()):
    cells = [(name, make) for make in MODELS for name in rules if (name, make) not in without]
    every_day = [(name, make) for name, make in cells if make in IN_CI]
    names = [f"{name}-{make.__name__}" for name, make in cells]
    return pytest.mark.parametrize(("name", "make"), helpers.at_night(cells, *every_day), ids=names)


every_model = pytest.mark.parametrize(
    "make", helpers.at_night(MODELS, *IN_CI), ids=lambda make: make.__name__
)


@pytest.fixture(scope="module", autouse=True)
def _ranks():
    """Published models add a bias of rank one to anything."""
    with jax.numpy_rank_promotion("allow"):
        yield


class Material:
    """A published model, its parameters and state, and the library's model of it."""

    def __init__(self, make):
        self.published = make()
        self.params, state = jax.jit(functools.partial(plain.draw, self.published))()
        self.state = state or ()
        self.sites = {path: _site(path, leaf) for path, leaf in self.published.sites.items()}
        self.model = from_linen(
            self.published.module,
            list(self.sites.values()),
            self.published.inputs,
            call=self.published.call,
            tap=_name(self.published.tap) or (),
        )
        self.batch = Batch(dict(self.published.inputs), dict(self.published.targets))
        # The library's own convention: a part of the key is the pass's, the other the rule's.
        self.forward_key, self.rule_key = jax.random.split(jax.random.key(KEY))

    def loss(self, outputs, targets):
        """The authors' loss as the library wants it."""
        return Loss(*self.published.loss(outputs, targets))

    @functools.cached_property
    def reference(self):
        """Loss, gradients, outputs and next state by `jax.grad`."""
        return self.by(plain.objective)(self.params, dict(self.state))

    def by(self, objective):
        """`(params, state, ...) -> loss, gradients, outputs, state`, compiled, of a plain objective."""

        def run(params, state, *more):
            (loss, (outputs, state)), grads = jax.value_and_grad(
                lambda params: objective(self.published, params, state, self.forward_key, *more),
                has_aux=True,
            )(params)
            return loss, grads, outputs, state

        return jax.jit(run)

    @functools.cached_property
    def chained(self):
        """Gradients through other kernels."""
        return self.by(plain.with_feedback)


class Ruled:
    """A rule started on a published model, and its compiled estimate."""

    def __init__(self, name, make):
        self.material = material(make)
        self.rule = RULES[name]()
        of = self.material
        self.params, self.state = jax.jit(
            lambda params, state: self.rule.init(
                jax.random.key(3), of.model.bind(state), params, of.batch
            )
        )(of.params, of.state)
        self.run = jax.jit(value_and_grad(self.rule, of.model, of.loss))

    @functools.cached_property
    def found(self):
        """`(loss, aux), grads` of the rule as it was started."""
        return self(self.params, self.state)

    def __call__(self, params, state):
        of = self.material
        return self.run(params, state, of.state, of.batch, jax.random.key(KEY))

    @property
    def own_grads(self):
        """Gradients of the model's own parameters."""
        return _own(self.found[1], self.material.params)


material = functools.cache(Material)
ruled = functools.cache(Ruled)


@_cells(RULES, without=REFUSED)
def test_the_pass_is_the_models_own(name, make):
    """Oracle: the module's own `apply`, to rounding: loss, every output, and the state of the next step,
    whatever the rule runs besides. Gradients are finite, in the parameters' tree."""
    subject = ruled(name, make)
    (loss, aux), grads = subject.found
    wanted_loss, _, outputs, state = subject.material.reference
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-5)
    helpers.assert_close(jax.tree.leaves(aux.outputs), jax.tree.leaves(outputs), 1e-5)
    helpers.assert_close(dict(aux.model_state), dict(state), 1e-5)
    assert jax.tree.structure(grads) == jax.tree.structure(subject.params)
    assert all(jax.tree.leaves(jax.tree.map(lambda g: bool(np.isfinite(g).all()), grads)))


@_cells(["backprop"])
def test_backpropagation_is_jax_grad(name, make):
    """Oracle: `jax.grad` of what the model's user would write, dropout, mask, weights and all."""
    subject = ruled(name, make)
    _assert_close(subject.found[1], subject.material.reference[1])


@every_model
def test_every_kernel_is_a_linear_map(make):
    """Oracle: the authors' names. Every parameter that they call a kernel, and a tied embedding, carries
    the error; a map that is not found would stay on its true transpose."""
    of = material(make)
    names = {"/".join(key.key for key in path) for path, _ in jax.tree.leaves_with_path(of.params)}
    named = {name.removesuffix("/kernel") for name in names if name.endswith("/kernel")}
    assert set(of.model.linear_maps) == named | ({of.published.tied} - {""})
    assert not of.model.unswapped


@_cells(CHAINS)
def test_chain_rules_send_errors_through_their_matrices(name, make):
    """Oracle: `jax.grad` of the model with each layer written a second time, `f(sg(x), W) + f(x, B) -
    sg(f(x, B))`, by Flax's interception of methods. Without it a map in a class of another author could be
    on its true transpose, and the rule backpropagation."""
    subject = ruled(name, make)
    feedback = _matrices(subject)
    _, wanted, _, _ = subject.material.chained(
        subject.material.params, dict(subject.material.state), feedback
    )
    found = subject.own_grads
    if name == "kolen_pollack":
        decay = subject.rule.decay
        for path in (one.path for one in subject.material.model.maps):
            W = tree.get(subject.material.params, path)
            wanted = tree.put(wanted, path, tree.get(wanted, path) + decay * W)
    _assert_close(found, wanted)


@_cells(CHAINS[1:] if CHAINS[0] == "backprop" else CHAINS)
def test_what_is_below_a_map_learns_otherwise(name, make):
    """Oracle: by hand, which parameters' errors pass no map; theirs is the true gradient, and every other
    one's is not, by more than a hundredth, unless it is zero, as that of the bias of attention's keys."""
    subject = ruled(name, make)
    true = subject.material.reference[1]
    apart = _differences(subject.own_grads, true)
    same = {path for path, difference in apart.items() if difference < 0.01}
    published = subject.material.published
    assert same - _at_rest(true) == set(published.last)


@_cells(["feedback_alignment", "fixed_random_sign", "kolen_pollack"])
def test_feedback_that_is_the_weights_is_backpropagation(name, make):
    """Oracle: `jax.grad`. What the rule adds to the chain is the matrices, and nothing else."""
    subject, of = ruled(name, make), material(make)
    W = kernels(of.model, of.params)
    params, state = {
        FeedbackAlignment: (of.params, W),
        FixedRandomSign: (of.params, jax.tree.map(np.abs, W)),
        KolenPollack: (_with_feedback(subject, W), ()),
    }[RULES[name]]
    _, grads = subject(params, state)
    wanted = of.reference[1]
    if name == "kolen_pollack":
        for path in (one.path for one in of.model.maps):
            W = tree.get(of.params, path)
            wanted = tree.put(wanted, path, tree.get(wanted, path) + subject.rule.decay * W)
    _assert_close(_own(grads, of.params), wanted)


@_cells(SENT, without=REFUSED)
def test_sites_learn_from_what_they_are_sent(name, make):
    """Oracle: `jax.grad` of the model cut behind every site by Flax's interception of methods, plus each
    activity times what the rule says that its site was sent. So what is above the last site has its true
    gradient, and nothing below hears of more than its error."""
    subject, of = ruled(name, make), material(make)
    errors = {path: subject.found[0][1].errors[site] for path, site in of.sites.items()}
    _, wanted, _, _ = of.by(plain.with_errors)(of.params, dict(of.state), errors)
    _assert_close(subject.own_grads, wanted)


@_cells(["direct_feedback_alignment"])
def test_direct_feedback_is_the_error_at_the_tap_times_a_matrix(name, make):
    """Oracle: `jax.grad` of the loss by the tapped logits, and a product in NumPy."""
    subject, of = ruled(name, make), material(make)
    outputs = subject.found[0][1].outputs

    def objective(logits):
        values, weights, _ = of.published.loss(
            plain.replaced(outputs, of.published.tap, logits), of.published.targets
        )
        return plain.mean(values, weights)

    e = jax.jit(jax.grad(objective))(plain.leaf(outputs, of.published.tap))
    _assert_sent(subject, np.asarray(e, np.float64))


@_cells(["direct_random_target_projection"], without=REFUSED)
def test_targets_are_projected_by_their_share(name, make):
    """Oracle: NumPy, one-hot labels by their weights. Padding must not be told what it should have been."""
    subject, of = ruled(name, make), material(make)
    logits = plain.leaf(subject.found[0][1].outputs, of.published.tap)
    labels = of.published.targets["labels"]
    weights = of.published.targets.get("weights", np.ones(labels.shape)).astype(np.float64)
    hot = labels[..., None] == np.arange(logits.shape[-1])
    _assert_sent(subject, hot * (weights / weights.sum())[..., None])


@_cells(
    ["direct_random_target_projection"], without={(n, m) for n in RULES for m in MODELS} - REFUSED
)
def test_labels_of_the_next_token_are_refused(name, make):
    """Documented contract: a label an error vector; where the loss drops the last one there is none."""
    with pytest.raises(InputError, match=r"projects integer labels \(4, 6\)"):
        ruled(name, make)


@_cells(["local_losses"])
def test_local_losses_are_those_of_heads_that_stand_in_for_the_logits(name, make):
    """Oracle: `jax.grad` of the model cut behind every block, with a linear head on the mean over patches
    at each, written out."""
    subject, of = ruled(name, make), material(make)

    def by_hand(published, both, state, key):
        heads = {path: both[HEADS][site] for path, site in of.sites.items()}
        own = {name: value for name, value in both.items() if name != HEADS}
        return plain.with_errors(published, own, state, key, {}, heads)

    _, wanted, _, _ = of.by(by_hand)(subject.params, dict(of.state))
    _assert_close(subject.found[1], wanted)


@_cells(
    ["weight_forward_gradient", "activity_forward_gradient"],
    without={("activity_forward_gradient", jax_resnet)},  # a draw is slow and spreads; see `resnet`
)
def test_guesses_are_right_on_average(name, make):
    """Statistical test: over 64 draws, the projection on the true gradient of the same pass, divided by
    its squared length, is 1 on average, within 4 standard errors. These are 0.18 with weights (s^2 of a
    normal s), so that half, or double, the gradient is seen; the z-test of every coordinate is in
    `rules/test_forward_gradients.py`."""
    subject, of = ruled(name, make), material(make)

    def one(key):
        _, grads = value_and_grad(subject.rule, of.model, of.loss)(
            subject.params, subject.state, of.state, of.batch, key
        )

        def objective(params):
            forward_key = jax.random.split(key)[0]
            return plain.objective(of.published, params, dict(of.state), forward_key)[0]

        true = jax.grad(objective)(of.params)
        return _inner(grads, true) / _inner(true, true)

    found = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(7), 64))
    assert np.std(found) < 2
    assert abs(np.mean(found) - 1) < 4 * np.std(found) / 8


@every_model
def test_the_default_call_finds_how_training_differs(make):
    """Oracle: the call that a user would write, to the bit, in training and in evaluation; a module of
    several arguments is refused by their names."""
    of = material(make)
    one = from_linen_of_one(of)
    if len(of.batch.inputs) > 1:
        with pytest.raises(InputError, match=r"attention_mask.*from_linen\(..., call="):
            one()
        return
    (inputs,) = of.batch.inputs.values()

    @functools.partial(jax.jit, static_argnums=2)
    def run(params, state, train):
        given = {"state": state, "key": of.forward_key, "train": train}
        ours = one().apply(params, inputs, **given)
        return ours, plain.apply(of.published, params, dict(state), of.forward_key, train)[0]

    for train in (False, True):
        found = run(of.params, of.state, train)
        helpers.assert_identical(*map(jax.tree.leaves, found))


def from_linen_of_one(of):
    """`from_linen` on the first of a batch's inputs, without a call."""
    inputs = next(iter(of.batch.inputs.values()))
    sites = list(of.sites.values())
    return functools.partial(from_linen, of.published.module, sites, inputs)


def _assert_sent(subject, signal):
    """Every site was sent the signal times its matrix, positions or examples one by one."""
    for site, B in subject.state.items():
        error = subject.found[0][1].errors[site]
        wanted = np.tensordot(signal, np.asarray(B, np.float64), 1)
        np.testing.assert_allclose(error, wanted, atol=2e-6 * np.abs(wanted).max())
        assert len(error) == BATCH


def _matrices(subject):
    """What errors come back through, by linear map, of the rule's own numbers."""
    of, name = subject.material, type(subject.rule)
    W = kernels(of.model, of.params)
    drawn = subject.rule.feedback(of.rule_key, of.model, subject.params, subject.state)
    if name in (FixedRandomSign, BatchwiseRandomSign):
        return {path: np.abs(drawn[path]) * np.sign(W[path]) for path in W}
    if name is UniformSign:
        return {path: np.sign(W[path]) / np.sqrt(_fan_in(of, path, W[path])) for path in W}
    return dict(drawn)


def _fan_in(of, path, W):
    """By hand: GPT-2's layers, and tied readouts, have their inputs behind."""
    behind = "transformer/h/" in path or path == of.published.tied
    return W.shape[-1] if behind else W[..., 0].size


def _own(grads, params):
    """The entries that the model's own parameters have."""
    if not isinstance(params, dict):
        return grads
    return {name: _own(grads[name], value) for name, value in params.items()}


def _with_feedback(subject, matrices):
    """Kolen-Pollack's parameters with these matrices as feedback."""
    params = subject.params
    for name, one in subject.material.model.linear_maps.items():
        own = "feedback" if one.path[-1] == "kernel" else f"{one.path[-1]}_feedback"
        params = tree.put(params, (*one.path[:-1], own), matrices[name])
    return params


def _assert_close(found, wanted):
    """To rounding."""
    apart = _differences(found, wanted)
    assert max(apart.values()) < 5e-5, max(apart, key=apart.get)


def _differences(found, wanted):
    """By parameter, the largest difference relative to the largest entry.

    That entry counts as a hundredth of the whole gradient's at least: the bias of attention's keys has a
    gradient of zero, and rounding for it.
    """
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    floor = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted)) / 100
    pairs = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True)
    return {
        "/".join(key.key for key in path): float(np.abs(a - b).max() / max(np.abs(b).max(), floor))
        for (path, a), b in pairs
    }


def _at_rest(gradients):
    """Parameters whose gradient is zero, to rounding."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    leaves = jax.tree.leaves_with_path(gradients)
    return {
        "/".join(key.key for key in path)
        for path, leaf in leaves
        if np.abs(leaf).max() < 1e-6 * largest
    }


def _inner(left, right):
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), left, right)))


def _name(keystr):
    """`keystr`'s spelling of a leaf as the library's."""
    return keystr.strip("[].'")


def _site(path, leaf):
    return f"{path}:{_name(leaf)}" if leaf else path
