"""What is run, what is skipped, and what a stop or a change leaves behind."""

import dataclasses
import os
import signal

import pytest

from dfa_jax.errors import InputError
from dfa_jax.report import plan, run, tuning
from dfa_jax.report.recipe import Order
from dfa_jax.train import interrupt, loop
from dfa_jax.train import records as files
from tests.report import made_up, sweepers
from tests.train import small


@pytest.fixture
def trained(monkeypatch, recipe):
    """Replaces training; the list of (variant, seed) that were trained, in order."""
    calls = []
    labels = {(config.model, config.rule): variant for variant, config in recipe.variants.items()}

    def fit(config, **options):
        del options
        variant = labels[config.model, config.rule]
        calls.append((variant, config.seed))
        made = made_up.record(recipe, variant, config.seed, (5.0,))
        made.config["data"]["data_dir"] = config.data.data_dir
        return loop.Result(dataclasses.replace(made, recipe="", variant=""), model=None, state=None)

    monkeypatch.setattr(loop, "fit", fit)
    return calls


def test_seeds_in_turn_and_one_line_a_run(recipe, trained, tmp_path):
    """Oracle: definition; every variant of a seed before the next seed, each appended."""
    said = []
    found = run.run(recipe, tmp_path / "records.jsonl", say=said.append)
    assert trained == [(variant, seed) for seed in recipe.seeds for variant in recipe.variants]
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == len(trained) == 18
    assert {(r.recipe, r.variant, r.seed) for r in found} == {("made_up", *one) for one in trained}
    assert said[0] == "[1/18] tanh/backprop, seed 0: test error 5.00 % in 2.0 s; 34.0 s left"
    assert said[-1].startswith("[18/18] relu/shallow, seed 2")
    assert said[-1].endswith("0.0 s left")


def test_nothing_is_run_twice(recipe, trained, tmp_path):
    """Oracle: exact equivalence; a second call trains nothing and finds the same."""
    first = run.run(recipe, tmp_path / "records.jsonl", say=str)
    trained.clear()
    assert run.run(recipe, tmp_path / "records.jsonl", say=str) == first
    assert trained == []


def test_a_stop_loses_only_the_run_in_progress(recipe, trained, tmp_path, monkeypatch):
    """Oracle: exact equivalence of a stopped and resumed recipe with an unbroken one."""
    fit, path = loop.fit, tmp_path / "records.jsonl"

    def stops(config, **options):
        if len(trained) == 4:
            raise KeyboardInterrupt
        return fit(config, **options)

    monkeypatch.setattr(loop, "fit", stops)
    with pytest.raises(KeyboardInterrupt):
        run.run(recipe, path, say=str)
    assert len(files.read_runs(path)) == 4
    monkeypatch.setattr(loop, "fit", fit)
    resumed = run.run(recipe, path, say=str)
    assert len(trained) == len(set(trained)) == 18
    assert resumed == run.run(recipe, tmp_path / "unbroken.jsonl", say=str)


SMALL = sweepers.recipe(variants={"digits": small.config(num_epochs=3)}, seeds=(0,))
"""Trials of four steps, and a run of twelve."""


def timeless(folder):
    """Trials and runs on record, without the seconds that they took."""
    return [
        (record.variant, record.config, small.without_time(record.curve))
        for name in (tuning.FILE, plan.RECORDS)
        for record in files.read_runs(folder / name)
    ]


@pytest.mark.parametrize("tuned", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_stopped_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch, tuned):
    """Oracle: the recipe left alone, and its steps, counted: none is taken twice. SIGTERM comes while a
    run, or a trial, takes its second dispatch."""
    recipe = SMALL if tuned else dataclasses.replace(SMALL, tuning=None)
    path, run_steps, taken = tmp_path / "stopped" / plan.RECORDS, loop.run_steps, []

    def counted(state, data, order, number, *others, **options):
        taken.append(number)
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_steps(state, data, order, number, *others, **options)

    run.run(recipe, tmp_path / "alone" / plan.RECORDS, say=str)
    monkeypatch.setattr(loop, "run_steps", counted)
    with pytest.raises(SystemExit), interrupt.listen("reproduce.py", "the same command goes on"):
        run.run(recipe, path, say=str)
    assert list((path.parent / run.UNFINISHED).rglob("checkpoints/[0-9]*"))
    run.run(recipe, path, say=str)
    assert timeless(tmp_path / "stopped") == timeless(tmp_path / "alone")
    trials = len(files.read_runs(path.with_name(tuning.FILE)))
    assert sum(taken) == 12 + 4 * trials
    assert bool(trials) == tuned
    assert not (path.parent / run.UNFINISHED).exists()


def test_an_unfinished_run_of_another_configuration(tmp_path, monkeypatch):
    """Documented contract: refused by name; `overwrite` begins it again, and once only: stopped a second
    time, it goes on from there."""
    recipe = dataclasses.replace(SMALL, tuning=None)
    changed = change_batch_size(recipe, "digits", 32)
    path, run_steps, begun, stops = tmp_path / plan.RECORDS, loop.run_steps, [], [4, 4]

    def steps(state, *others, **options):
        begun.append(int(state.step))
        if stops and begun[-1] == stops[0]:
            del stops[0]
            raise KeyboardInterrupt
        return run_steps(state, *others, **options)

    monkeypatch.setattr(loop, "run_steps", steps)
    monkeypatch.setattr(run, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run.run(recipe, path, say=str)
    with pytest.raises(InputError, match="batch_size: 16 -> 32"):
        run.run(changed, path, say=str)
    with pytest.raises(KeyboardInterrupt):
        run.run(changed, path, overwrite=True, say=str)
    assert begun.count(0) == 2
    begun.clear()
    (record,) = run.run(changed, path, overwrite=True, say=str)
    assert begun[0] == 4
    assert record.config["batch_size"] == 32


def test_a_run_that_was_killed_before_its_first_checkpoint(tmp_path, monkeypatch):
    """Oracle: the run left alone. It has a curve, of less than half of a minute, and nothing to go on
    from: it begins again."""
    recipe, run_steps = dataclasses.replace(SMALL, tuning=None), loop.run_steps
    whole = run.run(recipe, tmp_path / "alone" / plan.RECORDS, say=str)

    def steps(state, *others, **options):
        if int(state.step) == 8:
            raise KeyboardInterrupt
        return run_steps(state, *others, **options)

    path = tmp_path / "killed" / plan.RECORDS
    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_steps", steps)
        with pytest.raises(KeyboardInterrupt):
            run.run(recipe, path, say=str)
    (curve,) = path.parent.rglob("curve.jsonl")
    assert curve.read_text().count("\n") == 2
    found = run.run(recipe, path, say=str)
    assert [small.without_time(one.curve) for one in found] == [
        small.without_time(one.curve) for one in whole
    ]


def test_a_line_that_a_stop_cut_short_is_made_again(recipe, trained, tmp_path):
    """Oracle: exact equivalence; half a line neither fails nor spoils the record after it."""
    path = tmp_path / "records.jsonl"
    whole = run.run(recipe, path, say=str)
    path.write_text(path.read_text()[:-50])
    trained.clear()
    assert run.run(recipe, path, say=str) == whole
    assert trained == [("relu/shallow", 2)]
    assert plan.matching(recipe, files.read_runs(path)) == whole


def test_a_changed_configuration_is_refused_by_name(recipe, trained, tmp_path):
    """Oracle: the message names setting, both values and the remedy; nothing is trained."""
    path = tmp_path / "records.jsonl"
    run.run(recipe, path, say=str)
    trained.clear()
    changed = change_batch_size(recipe)
    with pytest.raises(InputError, match=r"batch_size: 128 -> 64.*--overwrite"):
        run.run(changed, path, say=str)
    assert trained == []


def test_overwrite_replaces_only_what_changed(recipe, trained, tmp_path):
    """Oracle: definition; 3 of 18 runs have another batch size."""
    path = tmp_path / "records.jsonl"
    run.run(recipe, path, say=str)
    trained.clear()
    found = run.run(change_batch_size(recipe), path, overwrite=True, say=str)
    assert trained == [("tanh/backprop", seed) for seed in recipe.seeds]
    assert [record.config["batch_size"] for record in found] == [64] * 3 + [128] * 15
    assert plan.matching(change_batch_size(recipe), files.read_runs(path)) == found


def change_batch_size(recipe, variant="tanh/backprop", batch_size=64):
    """The recipe with one variant at another batch size."""
    config = dataclasses.replace(recipe.variants[variant], batch_size=batch_size)
    return dataclasses.replace(recipe, variants={**recipe.variants, variant: config})


def test_where_data_lay_is_not_recorded(recipe, trained, tmp_path):
    """Oracle: absence; the folder's name is nowhere in the records, and changes no match."""
    path = tmp_path / "records.jsonl"
    run.run(recipe, path, data_dir=tmp_path / "some_folder", say=str)
    assert "some_folder" not in path.read_text()
    trained.clear()
    run.run(recipe, path, data_dir=tmp_path / "another", say=str)
    assert trained == []


def test_a_run_recorded_twice_counts_once(recipe, records):
    """Oracle: invariant; n counts seeds."""
    assert len(plan.matching(recipe, records + records[:5])) == len(records)


def test_records_of_other_variants_are_left_alone(recipe, records):
    """Oracle: invariant."""
    stranger = dataclasses.replace(records[0], variant="tanh/gone")
    assert len(plan.matching(recipe, [*records, stranger])) == len(records)


def test_some_variants_alone(recipe, trained, tmp_path):
    """Oracle: definition; a pattern's variants are trained, and the others when they are asked for."""
    path = tmp_path / "records.jsonl"
    some = dataclasses.replace(recipe, orders=(Order("tanh/backprop", "relu/backprop", "x"),)).only(
        "tanh/*"
    )
    assert list(some.variants) == [v for v in recipe.variants if v.startswith("tanh/")]
    assert (len(some.expected), some.orders) == (1, ())
    run.run(some, path, say=str)
    assert {variant for variant, _ in trained} == set(some.variants)
    whole = run.run(recipe, path, say=str)
    assert len(trained) == len(set(trained)) == len(whole) == 18


def test_a_pattern_that_matches_nothing_is_refused(recipe):
    """Oracle: the message names the nearest variant."""
    with pytest.raises(InputError, match="did you mean 'tanh/backprop'"):
        recipe.only("tanh/backpropp")
