"""The bar over all that a recipe lacks: what it counts, what it names, and what stays silent."""

import dataclasses

import pytest

from dfa_jax.report import plan, publish, run
from dfa_jax.train import loop
from dfa_jax.train import records as files
from tests.report import made_up, sweepers
from tests.train import small

TRIAL, RUN = 4, 12  # steps
ERRORS = {5e-3: 3.0, 1.5e-2: 2.0, 4.5e-2: 4.0}  # by rate: the second one tried is the best


@pytest.fixture
def recipe():
    """One run, and a search that comes to four trials; three are sure."""
    return sweepers.recipe(variants={"digits": small.config(num_epochs=3)}, seeds=(0,))


@pytest.fixture
def seen(recipe, monkeypatch):
    """Replaces training; where the bar stands, its total and its name when a run begins."""
    shown = []

    def fit(config, *, progress, **options):
        del options
        shown.append((progress.n, progress.total, getattr(progress, "desc", None)))
        for _ in range(TRIAL if config.data.num_validation else RUN):
            progress.update()
        error = ERRORS.get(config.optimizer.learning_rate, 5.0)
        made = made_up.record(recipe, "digits", config.seed, (error,))
        return loop.Result(dataclasses.replace(made, recipe="", variant=""), None, None)

    monkeypatch.setattr(loop, "fit", fit)
    return shown


def test_the_bar_counts_what_is_missing(recipe, seen, tmp_path):
    """Oracle: counting. Three trials and a run are sure at first, the fourth once the second is the best
    so far; a total that leaves trials out promises an end hours too early."""
    run.run(recipe, tmp_path / plan.RECORDS, say=str, progress=True)
    assert [one[:2] for one in seen] == [(0, 24), (4, 24), (8, 28), (12, 28), (16, 28)]
    names = [name.removesuffix(": ") for _, _, name in seen]
    assert names[1] == "digits@+1, seed 0, rate 0.015"
    assert names[-1] == "digits, seed 0, rate 0.015"


def test_the_bar_begins_where_the_records_end(recipe, seen, tmp_path):
    """Oracle: counting; what is on record is no work, or a stop would make the rest look longer."""
    path = tmp_path / plan.RECORDS
    run.run(recipe, path, say=str)
    path.unlink()
    seen.clear()
    run.run(recipe, path, say=str, progress=True)
    assert [one[:2] for one in seen] == [(0, RUN)]


def test_no_terminal_no_bar(recipe, seen, tmp_path, capfd):
    """Oracle: absence; a log file of a thousand redrawn bars is of no use."""
    publish.run(dataclasses.replace(recipe, tuning=None), tmp_path)
    out, err = capfd.readouterr()
    assert err == ""
    assert "[1/1] digits, seed 0: test error 3.00 %" in out


def test_records_that_are_in_are_said_to_be(recipe, tmp_path, capsys, monkeypatch):
    """Documented contract: one line that nothing is trained, and the remedy, in place of a silence that
    looks like training; and no such line where something is missing."""
    recipe = dataclasses.replace(recipe, tuning=None)
    monkeypatch.setattr(loop, "fit", None)
    files.append(tmp_path / recipe.name / plan.RECORDS, made_up.record(recipe, "digits", 0, (3.0,)))
    publish.run(recipe, tmp_path)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("nothing to run: 'sweep' is on record in ")
    assert "--results-dir FOLDER" in line
    with pytest.raises(TypeError):
        publish.run(dataclasses.replace(recipe, seeds=(0, 1)), tmp_path)
    assert capsys.readouterr().out == ""
