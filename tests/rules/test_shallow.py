"""The shallow control: the gradients of zeros sent to every site, without a product of them."""

import itertools

import flax.linen as nn
import jax
import numpy as np
import pytest

from dfa_jax.autodiff.objective import GlobalLoss
from dfa_jax.models import MLP
from dfa_jax.rules import DirectFeedbackAlignment, Shallow
from dfa_jax.rules.base import SiteRule
from tests import helpers, hlo


class Around(nn.Module):
    """A site that a skip connection goes around."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(6, name="stem")(x)
        h = h + nn.Dense(6, name="block")(nn.tanh(h))
        return nn.Dense(3, name="head")(h)


def around():
    return helpers.made(Around(), ["block"], helpers.images())


CASES = {
    helpers.mlp: {"readout"},
    helpers.convnet: {"readout"},
    helpers.scanned: {"readout"},
    helpers.transformer: {"final_norm", "unembed"},
    around: {"stem", "head"},
}


def lowered(estimate, case):
    """The control's estimate, by its own method or by the one that sends what `send` answers."""

    def run(params, batch):
        objective, key = GlobalLoss(helpers.LOSS), jax.random.key(3)
        return estimate(Shallow(), case.model, objective, params, (), batch, key)

    return jax.jit(run).lower(case.params, case.batch)


def is_moved(grads):
    return any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("case", "learners"),
    [  # every day, a Transformer is compared in `models/test_transformer_sites.py`
        pytest.param(*one, marks=pytest.mark.slow if one[0] is helpers.transformer else ())
        for one in CASES.items()
    ],
)
def test_gradients_are_those_of_zeros_at_every_site(case, learners):
    """Exact equivalence: local VJPs of the zeros that `send` answers, and `B = 0`, bit for bit.

    Every parameter has a gradient. What goes around a site learns, as it does there.
    """
    case, direct = case(), DirectFeedbackAlignment()
    found, sent = (
        lowered(estimate, case).compile()(case.params, case.batch)
        for estimate in (Shallow.estimate, SiteRule.estimate)
    )
    helpers.assert_identical(found, sent)
    params, state = helpers.started(direct, case)
    zero = jax.tree.map(np.zeros_like, state)
    helpers.assert_identical(found.grads, helpers.estimate(direct, case, params, zero).grads)
    assert {name for name, grads in found.grads.items() if is_moved(grads)} == learners


def test_nothing_is_multiplied_below_the_last_site():
    """Closed form: of all products in the compiled estimate, one is not of the forward pass: `h^T e`.

    The count can fail: products of zeros are not optimised away.
    """
    sizes = (8, 11, 13, 17, 3)
    case = helpers.made(MLP(sizes[1:-1], sizes[-1]), "layer_*", helpers.images())
    forward = 2 * 16 * sum(d_in * d_out for d_in, d_out in itertools.pairwise(sizes))
    found, sent = (
        hlo.count(lowered(estimate, case).compile().as_text())
        for estimate in (Shallow.estimate, SiteRule.estimate)
    )
    assert found == forward + 2 * 16 * 17 * 3
    assert sent > found


@pytest.mark.parametrize("form", ["scan", "scan_remat"])
def test_no_loop_runs_backwards(form):
    """Invariant: a stack of layers is one loop in the lowered estimate, as in the forward pass.

    Its backward pass would be a second one, and the first would keep what that one reads.
    """
    case = helpers.made(helpers.Stack(form), ["embed", "layers"], helpers.images())
    found, sent = (
        lowered(estimate, case).as_text().count("stablehlo.while")
        for estimate in (Shallow.estimate, SiteRule.estimate)
    )
    assert (found, sent) == (1, 2)
