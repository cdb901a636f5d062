"""What a sweep will cost, and how far it is."""

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
from tests.report import made_up

MODEL = Transformer(num_outputs=256, num_layers=1, width=16, num_heads=1, context=32, norm="post")


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


def test_status_tells_done_from_open(tmp_path, monkeypatch):
    """Oracle: what was done. One trial is run and one job is in other hands."""
    said = []

    def made(config):
        found = made_up.record(RECIPE, "small/BP", config.seed, (20.0,))
        return made_up.Result(dataclasses.replace(found, config=to_dict(config)))

    monkeypatch.setattr(sweep, "fit_together", made_up.together(made))

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
