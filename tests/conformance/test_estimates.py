"""One table for every registered rule: what an estimate is, on four models.

A new rule joins by its line in `dfa_jax.rules.RULES`; nothing here knows a rule by name.
"""

import contextlib
import functools

import chex
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dfa_jax.rules import RULES, SiteRule, functional
from tests import helpers
from tests.helpers import LOSS

CASES = {
    "mlp": helpers.mlp,
    "convnet": helpers.convnet,
    "scanned": helpers.scanned,
    "transformer": helpers.transformer,
}
LONG_TO_COMPILE = ("convnet", "transformer")

every_rule = pytest.mark.parametrize("name", list(RULES))
every_case = pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.slow if k in LONG_TO_COMPILE else ()) for k in CASES],
)


made = functools.cache(lambda kind: CASES[kind]())
plain_forward = functools.cache(lambda kind: helpers.plain_forward(made(kind)))


@functools.cache
def activities(kind):
    """Shapes of the activities of a model's sites."""
    model, params, batch = made(kind)
    return jax.eval_shape(lambda p, x: helpers.activities(model, p, x), params, batch.inputs)


class Prepared:
    """A rule started on a model, its compiled estimate, which no test may trace again, and errors."""

    def __init__(self, name, kind):
        self.rule, self.case = RULES[name](), made(kind)
        self.params, self.state = helpers.started(self.rule, self.case)

        def estimate(key, params, state, batch):
            return functional.estimate(
                self.rule, self.case.model, LOSS, params, state, (), batch, key
            )

        def errors(key, params, state, batch):
            return functional.estimate(
                self.rule, self.case.model, LOSS, params, state, (), batch, key
            ).errors

        estimate.__name__ = f"{name}_{kind}"  # Chex counts by source and name
        self.estimate, self.run = estimate, jax.jit(chex.assert_max_traces(estimate, n=1))
        self.errors = jax.jit(errors)

    def __call__(self, seed=0, params=None, state=None):
        params = self.params if params is None else params
        state = self.state if state is None else state
        return self.run(jax.random.key(seed), params, state, self.case.batch)


prepared = functools.cache(Prepared)


@every_rule
@every_case
def test_value_is_the_plain_mean_loss(name, kind):
    """Independent implementation: the module's own `apply` and the mean of the loss.

    Rules differ in gradients only; a loss of another forward pass could not be compared.
    """
    found = prepared(name, kind)()
    outputs, loss = plain_forward(kind)
    np.testing.assert_allclose(found.outputs, outputs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-5)
    assert found.loss.shape == ()


@every_rule
@every_case
def test_gradients_and_state_keep_their_trees(name, kind):
    """Invariant: gradients are like parameters, and the next state like this one: tree, shape, type.

    An optimiser, a checkpoint and a scan over steps all rest on it.
    """
    subject, found = prepared(name, kind), prepared(name, kind)()
    chex.assert_trees_all_equal_shapes_and_dtypes(found.grads, subject.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(found.rule_state, subject.state)
    chex.assert_tree_all_finite(found.grads)


@every_rule
@every_case
def test_estimates_are_pure_and_traced_once(name, kind):
    """Invariant: two calls are bit-identical, and other values of the same shapes need no new trace,
    at which `Prepared` raises."""
    subject = prepared(name, kind)
    helpers.assert_identical(subject(), subject())
    moved = jax.tree.map(lambda leaf: np.float32(1.5) * np.asarray(leaf), subject.params)
    subject(1, moved, subject().rule_state)


@every_rule
def test_start_is_a_function_of_its_key(name):
    """Invariant: the same key starts the same parameters and state; the rule keeps the model's own."""
    subject = prepared(name, "mlp")
    first, again = (subject.rule.init(jax.random.key(0), *subject.case) for _ in range(2))
    helpers.assert_identical(first, again)
    params = dict(jax.tree.leaves_with_path(first[0]))
    for path, leaf in jax.tree.leaves_with_path(subject.case.params):
        np.testing.assert_array_equal(params[path], leaf)


@every_rule
def test_the_key_matters_for_rules_that_draw_only(name):
    """Invariant: a deterministic rule ignores the key; a drawing one gets other gradients from it.

    Whether a rule draws is seen in its errors, which leave out everything else; a rule that sends
    none has only drawn directions to tell weights by.
    """
    subject = prepared(name, "mlp")

    def same(one, other):
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)

    given = (subject.params, subject.state, subject.case.batch)
    first, second = (subject.errors(jax.random.key(seed), *given) for seed in (0, 1))
    draws = not first or not same(first, second)
    assert same(subject(0).grads, subject(1).grads) == (not draws)
    assert same(subject(0).outputs, subject(1).outputs)


@pytest.mark.parametrize(
    ("name", "axis_type"),
    [(name, AxisType.Auto) for name in RULES]
    + [
        pytest.param(name, AxisType.Explicit, marks=() if "feedback" in name else helpers.NIGHTLY)
        for name in RULES
    ],
)
def test_eight_devices_equal_one(name, axis_type):
    """Exact equivalence: batch sharded over a mesh of 8, parameters and state replicated, to 3e-6:
    a gradient guess divides by a squared length, which doubles what rounding does to it. Under
    explicit axes, the default of `jax.make_mesh`, every array's type says how it is split.

    Noise or feedback drawn per device would make a result depend on the machine.
    """
    subject = prepared(name, "scanned")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    params, state = jax.device_put((subject.params, subject.state), whole)
    batch = jax.device_put(subject.case.batch, split)
    assert len(batch.inputs.sharding.device_set) == 8
    explicit = axis_type is AxisType.Explicit
    with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
        found = jax.jit(subject.estimate)(jax.random.key(0), params, state, batch)
    helpers.assert_close(found.grads, subject().grads, 3e-6)
    helpers.assert_close(found.loss, subject().loss, 1e-6)


@every_rule
@every_case
def test_abstract_parameters_will_do(name, kind):
    """Documented contract: `init` and `estimate` run on shapes, so a state can be sharded before it exists."""
    subject = prepared(name, kind)
    key = jax.random.key(0)
    like = jax.eval_shape(lambda: (subject.case.params, subject.case.batch))
    params, state = jax.eval_shape(
        lambda params, batch: subject.rule.init(key, subject.case.model, params, batch), *like
    )
    drawn = (subject.params, subject.state)
    direct = subject.rule.init(key, subject.case.model, *like)  # without a trace around it
    chex.assert_trees_all_equal_shapes_and_dtypes(drawn, (params, state), direct)
    found = subject.run.eval_shape(key, params, state, like[1])
    chex.assert_trees_all_equal_shapes_and_dtypes(found.grads, params)


@every_rule
@every_case
def test_errors_are_like_activities(name, kind):
    """Invariant: one error per site, with the activity's shape, in the model's own names, or none."""
    subject = prepared(name, kind)
    given = (subject.params, subject.state, subject.case.batch)
    errors = subject.errors.eval_shape(jax.random.key(0), *given)
    if not errors:
        return
    assert set(errors) == set(subject.case.model.sites)
    chex.assert_trees_all_equal_shapes_and_dtypes(errors, activities(kind))


@every_rule
def test_rules_are_values(name):
    """Invariant: two rules of equal options are equal and hash alike, so a configuration is a rule."""
    kind = RULES[name]
    assert kind() == kind()
    assert hash(kind()) == hash(kind())
    assert name in repr_name(kind)
    assert kind.__doc__
    if issubclass(kind, SiteRule):
        assert kind().tap in ("logits", "last_hidden")


def repr_name(kind):
    """The class's name in the registry's spelling."""
    letters = [f"_{c.lower()}" if c.isupper() else c for c in kind.__name__]
    return "".join(letters).lstrip("_")
