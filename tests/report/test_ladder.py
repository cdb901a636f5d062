"""Records of language models as points of scaling laws; what a sweep will cost, and how far it is."""

import dataclasses

import pytest

from dfa_jax.data import TextData
from dfa_jax.errors import InputError
from dfa_jax.models import Transformer
from dfa_jax.models.transformer import credit_sites
from dfa_jax.optim import Optimizer
from dfa_jax.report import ladder, progress, sweep
from dfa_jax.report.recipe import Recipe, Tuning
from dfa_jax.rules import Backprop, DirectFeedbackAlignment
from dfa_jax.train.config import TrainConfig, to_dict
from dfa_jax.train.records import Evaluation, RunRecord

MODEL = Transformer(num_outputs=256, num_layers=2, width=16, num_heads=1, context=32, norm="post")
N = 2 * 12 * 16 * 16 + 16 * 256


def config(rule) -> TrainConfig:
    return TrainConfig(
        data=TextData(context=32, num_train=2048, num_test=512),
        model=MODEL,
        sites=credit_sites(MODEL, "macro"),
        rule=rule,
        optimizer=Optimizer("adam", 1e-2),
        batch_size=8,
        num_tokens=8 * 32 * 10,
        log_evaluations=3,
        decay_fraction=0.5,
        alignment_examples=0,
    )


RECIPE = Recipe(
    title="A ladder",
    paper="none",
    minutes=1,
    variants={"small/BP": config(Backprop()), "small/DFA": config(DirectFeedbackAlignment())},
    seeds=(0, 1),
    tuning=Tuning(num_validation=256, fraction=0.5),
    name="ladder",
)


def record(variant, seed=0) -> RunRecord:
    """Three evaluations; the last one's branch diverged."""
    branches = [{"decayed_steps": 1.0, "decayed_test_loss": 4.0}] * 2 + [{"decayed_steps": 5.0}]
    curve = tuple(
        Evaluation(step, 0.0, 5.0, 0.0, 5.0 - step / 10, 0.0, found)
        for step, found in zip((1, 3, 10), branches, strict=True)
    )
    settings = to_dict(RECIPE.variants[variant])
    return RunRecord("ladder", variant, "", seed, 0, 10, 1.0, settings, {"commit": ""}, curve)


def test_points_by_hand():
    """Oracle: arithmetic. Tokens are steps times 8 x 32, a branch's own steps included where its
    loss is taken; N are 12 L d^2 + d V; the discount is DFA's alone, and none in matrix products
    that are counted but for the projections."""
    held = [record("small/BP"), record("small/DFA", seed=1)]
    found = {name: ladder.points(RECIPE.variants, held, name) for name in ladder.COUNTINGS}
    ours = found["6ND"]
    assert [(run.arm, run.size, run.seed) for run in ours[::3]] == [
        ("BP", "small", 0),
        ("DFA", "small", 1),
    ]
    assert [run.num_tokens for run in ours[:3]] == [2 * 256, 4 * 256, 10 * 256]
    assert [run.loss for run in ours[:3]] == [4.0, 4.0, 4.0]
    assert {run.num_params for run in ours} == {N}
    assert [run.flops for run in ours[3:]] == [6 * N * 512, 6 * N * 1024, 6 * N * 2560]
    assert found["4ND"][3].flops == 4 * N * 512
    assert found["2ND"][3].flops == 2 * N * 512
    assert found["2ND"][0].flops == 6 * N * 512
    # Counted: three passes, of which attention (2 x 2 T d a layer) is one that 6ND leaves out; the
    # block below needs no gradients of its activities up to the embedding's, which it does need.
    attention = 2 * 2 * 2 * 32 * 16
    assert found["counted"][0].flops == pytest.approx(512 * 3 * (2 * N + attention), rel=0.02)
    # Steps of the warm-up, two here, are left out.
    optimizer = Optimizer("adam", 1e-2, warmup_fraction=0.2)
    warm = {k: dataclasses.replace(c, optimizer=optimizer) for k, c in RECIPE.variants.items()}
    assert [run.num_tokens for run in ladder.points(warm, held[:1], "6ND")] == [1024, 2560]


def test_plan_by_hand():
    """Oracle: arithmetic; runs, five trials of half a length, and branches of half the steps so far.

    Evaluations at steps 1, 3 and 10 have branches of 7 steps in all, those of a trial at its last
    step, 5, of half as many."""
    lines = progress.planned(RECIPE).splitlines()
    assert lines[0].split() == ["variant", "trials", "runs", "tokens", "FLOPs", "hours"]
    tokens = 2 * 2560 + 5 * 1280
    assert lines[1].split()[:4] == ["small/BP", "5", "2", f"{tokens:.3g}"]
    per_token = ladder.flops_a_token(RECIPE.variants["small/BP"], "counted")
    spent = (2 * 2560 * 1.7 + 5 * 1280 * 1.5) * per_token
    assert lines[1].split()[4] == f"{spent:.3g}"
    assert lines[3].split()[:3] == ["all", "10", "4"]


def test_status_tells_done_from_open(tmp_path):
    """Oracle: what was done. One trial is run and one job is in other hands."""
    said = []

    def stop(line):
        said.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.work(RECIPE, tmp_path, say=stop)
    held = sweep.survey(RECIPE, tmp_path).open[0]
    with sweep.lock(tmp_path, held.name):
        lines = progress.status(RECIPE, tmp_path).splitlines()
    assert lines[1].split()[:7] == ["small/BP", "searched", "1", "0", "of", "2", "1"]
    assert lines[2].split()[:7] == ["small/DFA", "searched", "0", "0", "of", "2", "0"]
    assert "1 jobs done" in lines[3]
    assert "1 under way, 1 waiting" in lines[3]
    other = dataclasses.replace(RECIPE, seeds=(0,))
    with pytest.raises(InputError, match="another grid"):
        progress.status(other, tmp_path)
