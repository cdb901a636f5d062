"""From records of language models to points: tokens, FLOPs, losses and what is left out."""

import dataclasses

import pytest

from dfa_jax.data import TextData
from dfa_jax.errors import InputError
from dfa_jax.models import Transformer, credit_sites
from dfa_jax.optim import Optimizer
from dfa_jax.report import ladder
from dfa_jax.rules import Backprop, DirectFeedbackAlignment
from dfa_jax.scaling import flops
from dfa_jax.train.config import TrainConfig, rule_name, to_dict
from dfa_jax.train.records import Evaluation, RunRecord

MODEL = Transformer(num_layers=2, width=4, num_heads=1, num_outputs=10, context=8)
BP = TrainConfig(
    data=TextData(context=8),
    model=MODEL,
    sites=("block_*",),
    rule=Backprop(),
    optimizer=Optimizer(warmup_fraction=0.1),
    batch_size=2,
    num_tokens=100 * 16,
)
VARIANTS = {
    "2x4/BP": BP,
    "2x4/DFA": dataclasses.replace(BP, rule=DirectFeedbackAlignment()),
}
N = 2 * 12 * 4**2 + 4 * 10


def record(variant, decays=True):
    """Evaluations after 9, 10 and 100 steps, the branches a tenth as long."""
    curve = []
    for step in (9, 10, 100):
        branch = {"decayed_test_loss": 1.0 + 1 / step, "decayed_steps": step // 10}
        curve.append(Evaluation(step, 1.0, 3.0, 0.1, 2.0, 0.2, branch if decays else {}))
    config = VARIANTS[variant]
    return RunRecord(
        "r", variant, rule_name(config.rule), 1, 7, 100, 1.0, to_dict(config), {}, tuple(curve)
    )


def test_points_behind_the_warm_up():
    """Closed form: 16 tokens a step, the branch's included; the warm-up ends with step 10."""
    first, last = ladder.points(VARIANTS, [record("2x4/BP")], "6ND")
    assert (first.arm, first.size, first.seed, first.num_params) == ("BP", "2x4", 1, N)
    assert (first.num_tokens, last.num_tokens) == (11 * 16, 110 * 16)
    assert (first.loss, last.loss) == (1.1, 1.01)
    assert last.flops == 6 * N * 110 * 16


def test_without_branches_the_run_itself_counts():
    """Closed form: its own test loss, at its own tokens."""
    *_, last = ladder.points(VARIANTS, [record("2x4/BP", decays=False)], "6ND")
    assert (last.num_tokens, last.loss) == (100 * 16, 2.0)


@pytest.mark.parametrize(("counting", "factor"), [("6ND", 6), ("4ND", 4), ("2ND", 2)])
def test_who_has_a_discount(counting, factor):
    """Closed form: DFA pays what the convention says, backpropagation always 6 N D."""
    dfa = ladder.flops_a_token(VARIANTS["2x4/DFA"], counting)
    assert (dfa, ladder.flops_a_token(BP, counting)) == (factor * N, 6 * N)


def test_counted_follows_sites_and_what_is_frozen():
    """Exact equivalence with `scaling.flops.count`, which is told what a run's configuration says."""
    own = credit_sites(MODEL, "linear", embedding="own")
    linear = dataclasses.replace(VARIANTS["2x4/DFA"], sites=own)
    frozen = dataclasses.replace(BP, optimizer=Optimizer(frozen=("block_*",)))
    scanned = dataclasses.replace(
        BP,
        model=MODEL.clone(scan=True),
        sites=("blocks",),
        optimizer=Optimizer(frozen=("blocks",)),
    )

    def count(rule, **options):
        return flops.count(MODEL, rule, batch=1, time=8, **options).per_token

    found = [ladder.flops_a_token(config, "counted") for config in (BP, linear, frozen)]
    assert found == [
        count(BP.rule),
        count(linear.rule, granularity="linear", embedding="own"),
        count(BP.rule, frozen_blocks=True),
    ]
    assert len(set(found)) == 3
    assert ladder.flops_a_token(scanned, "counted") == found[2]
    other = dataclasses.replace(BP, sites=("block_*/attention",))
    with pytest.raises(InputError, match=r"sites are \('block_\*/attention',\)"):
        ladder.flops_a_token(other, "counted")
