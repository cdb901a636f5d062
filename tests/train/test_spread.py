"""A step spread over devices by the blocks of its backward pass, and over time by parts of the batch."""

import dataclasses

import numpy as np
import pytest

from dfa_jax.data import MarkovData
from dfa_jax.errors import InputError
from dfa_jax.models import Transformer
from dfa_jax.optim import Optimizer
from dfa_jax.rules import Backprop, DirectFeedbackAlignment
from dfa_jax.train import fit
from tests import helpers
from tests.train import small

STEPS = 20
SOURCE = MarkovData(num_symbols=8, context=8, num_train=512, num_test=64)
PLAIN = small.config(
    "direct_feedback_alignment",
    data=SOURCE,
    model=Transformer(8, 2, 16, 2, context=8, scan=True),
    sites=("blocks",),
    optimizer=Optimizer("sgd", 0.02),
)
CONFIG = dataclasses.replace(PLAIN, rule=DirectFeedbackAlignment(backward="layer_parallel"))


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", helpers.at_night([False, True], True))
def test_blocks_over_devices_train_as_one_by_one_on_one(fsdp):
    """Oracle: one device and the sequential pass; the order of sums differs, 1e-7 a step."""
    alone = small.losses(PLAIN, small.mesh(), STEPS)
    assert alone.std() > 1e-4  # it moves
    over = small.mesh(4, 2, fsdp=fsdp, layers=True)
    np.testing.assert_allclose(small.losses(CONFIG, over, STEPS), alone, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [pytest.param((4, 2), marks=pytest.mark.nightly), (8, 1)])
def test_parts_of_a_batch_on_a_mesh(shape):
    """Oracle: one device and the whole batch at once."""
    mesh = small.mesh(*shape, fsdp=shape == (8, 1))
    in_parts = small.losses(PLAIN, mesh, STEPS, num_parts=2)
    np.testing.assert_allclose(in_parts, small.losses(PLAIN, small.mesh(), STEPS), rtol=1e-5)


REFUSED = {
    "a rule without it": (
        {"layer_axis": 2, "rule": Backprop()},
        "layer_axis is 2 and rule backprop has no layer-parallel",
    ),
    "the layers": ({"layer_axis": 8}, "layer_axis is 8, which does not divide the 2 layers of"),
    "the devices": ({"layer_axis": 3}, "layer_axis is 3, which does not divide the 8 devices"),
    "width as well": (
        {"layer_axis": 2, "model_axis": 2},
        "model_axis is 2 and layer_axis is 2; expected one of them to be 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    """Oracle: the contract. One line that names the value and the remedy, before any work."""
    changes, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        fit(dataclasses.replace(CONFIG, **changes), progress=False)
