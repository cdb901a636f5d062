"""A language model made small keeps what decides how it is compiled; a study draws few samples."""

import functools

from dfa_jax.data import TextData
from dfa_jax.models import Transformer
from dfa_jax.report.run_study import RunStudy
from dfa_jax.report.shrink import shrink_config
from dfa_jax.train.config import TrainConfig
from tests.report import made_up


def test_switches_stay():
    """Invariant: a shrunk run tests the program of the full one: scan, remat, type, norms, streaming
    and a split width."""
    model = Transformer(
        num_layers=24,
        width=2048,
        num_heads=32,
        context=1024,
        norm="post",
        scan=True,
        remat=True,
        dtype="bfloat16",
    )
    data = TextData("c4/en", tokenizer="bpe", vocab_size=32_768, context=1024, stream=True)
    small = shrink_config(TrainConfig(data=data, model=model, sites=("blocks",), model_axis=4))
    assert isinstance(small.data, TextData)
    kept = [getattr(small.model, name) for name in ("scan", "remat", "dtype", "norm")]
    assert kept == [True, True, "bfloat16", "post"]
    assert (small.data.stream, small.model_axis, small.sites) == (True, 2, ("blocks",))
    assert (small.model.num_layers, small.model.width) == (3, 8)


def test_a_study_draws_two_samples_if_it_draws_any():
    """Definition: two bootstrap samples in place of those bound; what else is bound stays."""

    def draw(held, theme, *, num_samples, title):
        return held, theme, num_samples, title

    def findings(held):
        return held

    study = RunStudy(
        title="Samples",
        paper="none",
        minutes=1,
        runs=made_up.RECIPE,
        draw=functools.partial(draw, num_samples=400, title="t"),
        findings=findings,
    )
    small = study.shrink()
    assert small.draw([], "dark") == ([], "dark", 2, "t")
    assert small.findings([]) == []
    assert small.runs.seeds == (0,)
