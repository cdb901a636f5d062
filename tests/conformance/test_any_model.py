"""Every rule on models in other people's shapes, under every form of a loss: right, or refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfa_jax.errors import InputError
from dfa_jax.rules import RULES, ChainRule, functional
from dfa_jax.rules.base import kernels
from tests import helpers
from tests.conformance import oracles, page, zoo
from tests.conformance.oracles import FORMS, KEY
from tests.conformance.page import NEVER
from tests.conformance.refusals import REFUSALS

CELLS = [(kind, form) for kind in zoo.KINDS for form in FORMS]
EVERY_DAY = [("squeezed head", "entry by entry"), ("actor and critic", "one an example")]
SLOW = [
    ("ResNet, batch statistics", "weighted, and more"),
    ("masked language model, tied", "weighted"),
    ("experts, a sown loss", "one a row"),
    ("low-rank adapters", "a scalar"),
]

every_rule = pytest.mark.parametrize("name", list(RULES))


def marks(cell):
    """What is run when: the other cells repeat models and forms of these."""
    if cell in EVERY_DAY:
        return ()
    return pytest.mark.slow if cell in SLOW else pytest.mark.nightly


every_cell = pytest.mark.parametrize(
    ("kind", "form"), [pytest.param(*cell, marks=marks(cell)) for cell in CELLS]
)


class Computed:
    """All that is compared in one cell, in one program."""

    def __init__(self, kind, form):
        self.case, self.loss = zoo.made(kind), oracles.loss_of(zoo.made(kind).kind, form)
        case, reference = self.case, oracles.reference(kind, form)
        served = [name for name in RULES if (name, kind) not in NEVER]
        self.starts = {name: self.start(oracles.rule(name)) for name in served}
        own = (case.params, kernels(case.model, case.params))
        of_losses, of_activities = oracles.local(kind, form)
        by_hand = {"uniform_sign", "fixed_random_sign", "kolen_pollack"}

        def run(starts, own, state, batch):
            found = {
                name: functional.estimate(
                    oracles.rule(name), case.model, self.loss, *starts[name], state, batch, KEY
                )
                for name in starts
            }
            found["feedback alignment by W"] = functional.estimate(
                oracles.rule("feedback_alignment"), case.model, self.loss, *own, state, batch, KEY
            )
            for name in by_hand:  # feedback alignment with the matrices that the rule defines
                given = (case.params, matrices(name, case, *starts[name]))
                found[f"{name} by hand"] = functional.estimate(
                    oracles.rule("feedback_alignment"),
                    case.model,
                    self.loss,
                    *given,
                    state,
                    batch,
                    KEY,
                )
            heads, blocks = starts["local_losses"][0], case.model.sites
            local = of_losses(heads, batch, blocks)
            guesses = of_activities(starts["gradient_guess"][0], batch, blocks[:-1])
            return found, reference(case.params, batch), local, guesses

        self.found, self.reference, self.local, self.guesses = jax.jit(run)(
            self.starts, own, case.state, case.batch
        )

    def start(self, rule):
        """Parameters and rule state, with random numbers in all that the rule adds."""
        case = self.case
        like = jax.eval_shape(lambda: functional.init(rule, case.model, self.loss, KEY, case.batch))
        params = helpers._with(helpers.normals(like.params, 3, 0.5), case.params)
        return params, helpers.normals(like.rule_state, 4, 0.5)


def matrices(name, case, params, rule_state):
    """What a rule puts in place of each kernel, by its definition; of plain kernels."""
    found = {}
    for one in case.model.maps:
        W = at_path(case.params, one.path)
        *module, leaf = one.path
        beside = "feedback" if leaf == "kernel" else f"{leaf}_feedback"
        found[one.name] = {
            "uniform_sign": lambda W=W, one=one: jnp.sign(W) * np.float32(one.fan_in**-0.5),
            "fixed_random_sign": lambda W=W, one=one: jnp.abs(rule_state[one.name]) * jnp.sign(W),
            "kolen_pollack": lambda path=(*module, beside): at_path(params, path),
        }[name]()
    return found


computed = functools.cache(Computed)


@every_cell
@every_rule
def test_estimate_is_the_definitions(name, kind, form):
    """Independent implementation: `tests.conformance.oracles`: the loss, the model's state, the exact
    gradient of the readout, and the errors of the rule by its definition, from `jax.grad` of the
    module's own `apply` and of the scalar written out.

    Outside of its own four networks the library was right under some rules and wrong under others.
    """
    if (name, kind) in NEVER:
        case, rule = zoo.made(kind), oracles.rule(name)
        loss = oracles.loss_of(case.kind, form)
        with pytest.raises(InputError, match=NEVER[name, kind]):
            functional.init(rule, case.model, loss, KEY, case.batch)
        return
    cell = computed(kind, form)
    check(name, kind, form, cell)


def check(name, kind, form, cell):
    """Compares one rule's estimate with what it must be."""
    found, wanted, case = cell.found[name], cell.reference, cell.case
    np.testing.assert_allclose(found.loss, wanted.loss, rtol=2e-5)
    helpers.assert_close(found.outputs, wanted.outputs, 1e-5)
    helpers.assert_close(found.model_state or {}, wanted.state, 1e-5)
    params, rule_state = cell.starts[name]
    assert jax.tree.structure(found.grads) == jax.tree.structure(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.grads))
    path = case.kind.readout
    if (
        len(path) > 1 or name != "weight_forward_gradient"
    ):  # the root's own are guessed with the rest
        readout, exact = (at_path(grads, path) for grads in (found.grads, wanted.grads))
        helpers.assert_close(readout, exact, 2e-5)
    if name == "backprop":
        helpers.assert_close(found.grads, wanted.grads, 2e-5)
    sent = ("direct_feedback_alignment", "direct_random_target_projection", "shallow", "backprop")
    if name in (*sent, "activity_forward_gradient"):
        expected = oracles.expected_errors(name, kind, form, wanted, rule_state, case.batch)
        helpers.assert_close(dict(found.errors), dict(expected), 5e-5)
    if name == "weight_forward_gradient":
        expected = oracles.weight_guess(case, wanted, params)
        for path, leaf in jax.tree.leaves_with_path(found.grads):
            path = "/".join(part.key for part in path)
            helpers.assert_close(leaf, expected[path], 1e-4)
    if name == "feedback_alignment":
        by_own = cell.found["feedback alignment by W"]
        helpers.assert_close(by_own.grads, wanted.grads, 5e-5)
    if issubclass(RULES[name], ChainRule) and name != "backprop":
        first, true = (
            np.asarray(at_path(grads, case.kind.first)) for grads in (found.grads, wanted.grads)
        )
        assert np.abs(first - true).max() > 1e-3 * np.abs(true).max()
    if f"{name} by hand" in cell.found:
        same = cell.found[f"{name} by hand"].grads
        for path, leaf in jax.tree.leaves_with_path(same):
            helpers.assert_close(at_path(found.grads, [p.key for p in path]), leaf, 5e-5)
    if name == "local_losses":
        helpers.assert_close(found.grads, cell.local, 5e-5)
    if name == "gradient_guess":
        apart = oracles.is_told_apart(case, form)
        for site, g in cell.guesses.items():
            expected = oracles.projection(wanted.site_errors[site], g, apart)
            helpers.assert_close(np.asarray(found.errors[site]), expected, 2e-4)


def at_path(grads, path):
    """The gradient of one parameter."""
    return functools.reduce(lambda tree, key: tree[key], path, grads)


@pytest.mark.parametrize("what", REFUSALS)
def test_what_may_be_refused_is_so_in_one_line(what):
    """Documented contract: these, and no other cells; what was found and the remedy."""
    words, call = REFUSALS[what]
    with pytest.raises(InputError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_page_of_the_docs_is_made_of_these_tables():
    """Exact equality: a model, a rule or a refusal more, and the page must be written anew."""
    assert page.PAGE.read_text() == page.page()
