"""The Transformer's credit sites: where they are, and that nothing goes around them."""

import jax
import numpy as np
import pytest

from dfa_jax import check_isolation
from dfa_jax.autodiff.objective import chain_gradients
from dfa_jax.autodiff.site_gradients import deliver
from dfa_jax.errors import SiteError
from dfa_jax.models import Transformer, credit_sites, from_linen
from dfa_jax.models.transformer import granularity_of
from dfa_jax.rules import DirectFeedbackAlignment, Shallow
from tests import helpers
from tests.helpers import LOSS, tokens

SMALL = Transformer(num_outputs=7, num_layers=2, width=8, num_heads=2, mlp_factor=2, context=5)

every_form = pytest.mark.parametrize("form", ["pre", "post"])
finest_first = pytest.mark.parametrize(  # a leak shows up at the finest, where there is most to cut
    "granularity",
    [
        "linear",
        pytest.param("micro", marks=pytest.mark.slow),
        pytest.param("macro", marks=helpers.NIGHTLY),
    ],
)


def made(module, granularity, **options):
    sites = credit_sites(module, granularity, **options)
    return helpers.made(module, sites, tokens(classes=7))


def test_names_of_sites():
    """Closed form: written down by hand, in forward order; the stack has them once."""
    micro = ["attention", "mlp/down:input", ""]
    linear = {
        "pre": [
            *("attention/norm", "attention/qkv", "attention/out", "attention"),
            *("mlp/norm", "mlp/up", "mlp/down", ""),
        ],
        "post": [
            *("attention/qkv", "attention/out", "attention/norm"),
            *("mlp/up", "mlp/down", "mlp/norm"),
        ],
    }
    for form in ("pre", "post"):
        inside = {"macro": [""], "micro": micro, "linear": linear[form]}
        for granularity, places in inside.items():
            for scan, blocks in ((False, ["block_0", "block_1"]), (True, ["blocks"])):
                names = [f"{block}/{p}".rstrip("/") for block in blocks for p in places]
                module = SMALL.clone(norm=form, scan=scan)
                x = tokens().inputs
                plain = from_linen(module, credit_sites(module, granularity), x)
                assert list(plain.sites) == names
                assert {place.stack for place in plain.places} == {(2,) if scan else ()}
                if granularity == "micro":  # one is as good as another
                    sites = credit_sites(module, granularity, embedding="own", last_hidden=True)
                    above = ["last_hidden"] if scan else []
                    assert list(from_linen(module, sites, x).sites) == ["embed", *names, *above]


@every_form
@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_options_are_read_off_the_sites(form, scan):
    """Exact equivalence: the options that made the sites, and None for sites of one's own."""
    module = SMALL.clone(norm=form, scan=scan)
    for granularity in ("macro", "micro", "linear"):
        for embedding in ("block_1", "own"):
            for last_hidden in (False, True):
                sites = credit_sites(
                    module, granularity, embedding=embedding, last_hidden=last_hidden
                )
                assert granularity_of(module, sites) == (granularity, embedding)
    assert granularity_of(module, ("block_*/attention",)) is None


@pytest.mark.parametrize(
    ("form", "scan"),
    [
        ("pre", False),
        ("post", True),
        *(pytest.param(*c, marks=pytest.mark.nightly) for c in (("pre", True), ("post", False))),
    ],
)
@finest_first
def test_true_errors_give_the_gradient(x64, granularity, form, scan):
    """Exact equivalence: `dL/dh` at every site, by local VJPs, is `jax.grad` of the plain module.

    It proves that the cuts are where the errors are, and that no parameter is left out.
    """
    embedding = "own" if form == "pre" else "block_1"
    case = made(SMALL.clone(norm=form, scan=scan, tied=scan), granularity, embedding=embedding)

    @jax.jit
    def gradients(params, batch):
        sent = chain_gradients(case.model, LOSS, params, batch, {}).errors
        return deliver(case.model, LOSS, params, batch, sent).grads, helpers.backprop(case, params)

    helpers.assert_close(*gradients(case.params, case.batch), 1e-11)


@pytest.mark.parametrize(
    ("granularity", "form", "scan"),
    [
        ("linear", "pre", True),
        pytest.param("macro", "pre", False, marks=pytest.mark.slow),
        pytest.param("micro", "post", False, marks=pytest.mark.slow),
    ],
)
def test_zero_feedback_is_the_shallow_control(granularity, form, scan):
    """Exact equivalence: DFA with B = 0; and the control moves the head alone."""
    case = made(SMALL.clone(norm=form, scan=scan), granularity)
    rule = DirectFeedbackAlignment()
    _, state = helpers.started(rule, case)
    zero = jax.tree.map(np.zeros_like, state)
    found = helpers.estimate(rule, case, case.params, zero).grads
    shallow = helpers.estimate(Shallow(), case, case.params, ()).grads
    helpers.assert_close(found, shallow, 1e-6)
    moved = {name for name, part in shallow.items() if np.any(jax.tree.leaves(part)[0])}
    assert moved == ({"final_norm", "unembed"} if form == "pre" else {"unembed"})


@every_form
@finest_first
def test_no_error_goes_around_a_site(granularity, form):
    """Proof of absence: with errors held fixed, gradients keep every bit under other upper weights.

    (The embedding has its own site: else its error from block 1 passes behind that block's maps.)
    """
    case = made(SMALL.clone(norm=form), granularity, embedding="own")
    assert check_isolation(*case).isolated


@every_form
def test_only_block_1_reaches_the_embedding(form):
    """Proof of absence: under `block_1`, blocks above the first do not touch the embedding.

    Every map of them is poisoned with NaN, all errors held fixed. Cut at every map, the residual
    stream would carry the true error past them, if it were not cut too.
    """
    case = made(SMALL.clone(norm=form), "linear")

    def activities(params):
        return helpers.activities(case.model, params, case.batch.inputs)

    errors = helpers.normals(jax.eval_shape(activities, case.params), 4)

    @jax.jit
    def embedding(params):
        return jax.vjp(activities, params)[1](errors)[0]["embed"]

    clean = embedding(case.params)
    poisoned = case.params | {
        "block_1": jax.tree.map(lambda leaf: np.asarray(leaf) * np.nan, case.params["block_1"])
    }
    helpers.assert_identical(embedding(poisoned), clean)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(clean))


@pytest.mark.parametrize(
    ("form", "tied"),
    [
        ("post", True),
        pytest.param("pre", False, marks=pytest.mark.slow),
        pytest.param("pre", True, marks=helpers.NIGHTLY),
    ],
)
def test_last_hidden_tap_scanned_equals_unrolled(x64, form, tied):
    """Exact equivalence: the same feedback from the last hidden state gives the same gradients.

    The stack has one more site, which no parameter lies behind.
    """
    rule = DirectFeedbackAlignment(error_tap="last_hidden")
    module = SMALL.clone(norm=form, tied=tied)
    plain, stack = (made(m, "micro", last_hidden=True) for m in (module, module.clone(scan=True)))
    _, state = helpers.started(rule, stack)
    assert {B.shape[-2] for B in state.values()} == {8}  # the width, not the vocabulary
    unrolled = {
        name.replace("blocks", f"block_{i}"): np.asarray(B)[i]
        for i in range(2)
        for name, B in state.items()
        if name != "last_hidden"
    }
    found = helpers.estimate(rule, stack, stack.params, state).grads
    flat = helpers.unstacked(stack.params, 2, ("blocks", "block"))
    expected = helpers.estimate(rule, plain, flat, unrolled).grads
    helpers.assert_close(helpers.unstacked(found, 2, ("blocks", "block")), expected, 1e-11)
    head = helpers.backprop(plain, flat)
    for name in head.keys() & {"final_norm", "unembed"}:
        helpers.assert_close(expected[name], head[name], 1e-11)


def test_a_stack_is_no_tap():
    """Documented contract: the refusal says what is missing, which `last_hidden=True` adds."""
    case = made(SMALL.clone(scan=True), "macro")
    rule = DirectFeedbackAlignment(error_tap="last_hidden")
    _, state = helpers.started(rule, case)
    with pytest.raises(SiteError, match="outside the stack"):
        helpers.estimate(rule, case, case.params, state)
