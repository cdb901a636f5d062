"""The search for learning rates: what is tried, what is chosen, and what a stop leaves behind."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from dfa_jax.data import GaussianTargets
from dfa_jax.errors import DivergedError, InputError
from dfa_jax.report import plan, publish, run, table, tuning
from dfa_jax.report.recipe import Order, Recipe, Tuning
from dfa_jax.train import loop
from dfa_jax.train import records as files
from tests.report import made_up

BEST = {"backprop": 0.03, "shallow": 0.3}  # errors rise by 1 % a factor 10 from here
START = 0.03


@pytest.fixture
def tuned(recipe):
    """Two variants that start at rate 0.03, tuned by factors of ten."""
    variants = {}
    for rule in BEST:
        config = recipe.variants[f"tanh/{rule}"]
        optimizer = dataclasses.replace(config.optimizer, learning_rate=START)
        variants[rule] = dataclasses.replace(config, optimizer=optimizer)
    search = Tuning(num_epochs=0.5, num_validation=100, factor=10)
    return dataclasses.replace(recipe, variants=variants, expected=(), tuning=search)


@pytest.fixture
def calls(monkeypatch, tuned):
    """Replaces training by a parabola; the (rule, rate, validation examples, epochs) trained."""
    made = []

    def fit(config, **options):
        del options
        rule = next(r for r, c in tuned.variants.items() if c.rule == config.rule)
        rate = config.optimizer.learning_rate
        made.append((rule, rate, config.data.num_validation, config.num_epochs))
        if rate > 1:
            raise DivergedError("the loss is nan")
        error = 2.0 + abs(math.log10(rate / BEST[rule]))
        record = made_up.record(tuned, rule, config.seed, (error,))
        return loop.Result(dataclasses.replace(record, recipe="", variant=""), None, None)

    monkeypatch.setattr(loop, "fit", fit)
    return made


def test_the_best_rate_is_inside_of_what_was_tried(tuned, calls, tmp_path):
    """Oracle: closed form; errors grow on both sides of a known rate, and above 1 runs diverge.

    Both neighbours of the first rate are tried too, whichever way the best one lies.
    """
    found = run.run(tuned, tmp_path / "records.jsonl", say=str)
    tried = [
        rate for rule, rate, num_validation, _ in calls if num_validation and rule == "shallow"
    ]
    assert tried == [0.03, 0.3, 0.003, 3.0]
    tried = [
        rate for rule, rate, num_validation, _ in calls if num_validation and rule != "shallow"
    ]
    assert tried == [0.03, 0.3, 0.003]
    assert {(r.variant, r.config["optimizer"]["learning_rate"]) for r in found} == {*BEST.items()}
    assert {r.seed for r in found} == set(tuned.seeds)


def test_trials_see_no_test_example_and_runs_train_on_everything(tuned, calls, tmp_path):
    """Oracle: definition; a trial is short and has a validation split, a run neither."""
    run.run(tuned, tmp_path / "records.jsonl", say=str)
    trials = [call[2:] for call in calls if call[2]]
    assert set(trials) == {(100, 0.5)}
    assert {call[2:] for call in calls} - set(trials) == {(0, 10.0)}


def test_a_stop_loses_only_the_trial_in_progress(tuned, calls, tmp_path, monkeypatch):
    """Oracle: exact equivalence of a stopped and resumed search with an unbroken one."""
    fit, path = loop.fit, tmp_path / "records.jsonl"

    def stops(config, **options):
        if len(calls) == 4:
            raise KeyboardInterrupt
        return fit(config, **options)

    monkeypatch.setattr(loop, "fit", stops)
    with pytest.raises(KeyboardInterrupt):
        run.run(tuned, path, say=str)
    assert len(files.read_runs(tmp_path / tuning.FILE)) == 4
    monkeypatch.setattr(loop, "fit", fit)
    resumed = run.run(tuned, path, say=str)
    assert len(calls) == len(set(calls)) + 2 * 2  # the same run for each of three seeds
    assert len(resumed) == 6


def test_programs_of_earlier_trials_are_forgotten(
    tuned, calls, tmp_path, monkeypatch, clear_caches
):
    """Invariant: each trial compiles a program of its own, and the search never holds two."""
    fit, held = loop.fit, []
    program = jax.jit(lambda x: x + 1)

    def compiles(config, **options):
        program(np.zeros(1 + len(calls)))
        return fit(config, **options)

    monkeypatch.setattr(loop, "fit", compiles)
    monkeypatch.setattr(jax, "clear_caches", clear_caches)

    def say(line):
        if "@" in line:  # of a trial
            held.append(_size(program))

    run.run(tuned, tmp_path / plan.RECORDS, say=say)
    assert len(held) == len([call for call in calls if call[2]]) == 7
    assert max(held) == 0


def _size(program):
    return program._cache_size()


def test_trials_of_another_configuration_are_refused_by_name(tuned, calls, tmp_path):
    """Oracle: the message names setting, both values and the remedy; nothing is trained."""
    run.run(tuned, tmp_path / "records.jsonl", say=str)
    calls.clear()
    longer = dataclasses.replace(tuned, tuning=dataclasses.replace(tuned.tuning, num_epochs=2.0))
    with pytest.raises(InputError, match=r"num_epochs: 0.5 -> 2.0.*--overwrite"):
        run.run(longer, tmp_path / "records.jsonl", say=str)
    assert calls == []
    run.run(longer, tmp_path / "records.jsonl", overwrite=True, say=str)
    assert {call[3] for call in calls} == {2.0}  # new trials, and the runs are as they were


def test_published_results_are_those_of_the_chosen_rate(tuned, calls, tmp_path):
    """Oracle: invariant; the table shows the rate, and finished runs count as complete."""
    folder = tmp_path / tuned.name
    run.run(tuned, folder / publish.RECORDS, say=str)
    held = publish.held_runs(tuned, tmp_path)
    assert len(held) == 6
    assert publish.progress(tuned, tmp_path) == "complete"
    headings, *lines = table.grid(table.rows(tuned, held))
    rates = {line[0]: line[headings.index("rate")] for line in lines}
    assert rates == {rule: f"{rate:g}" for rule, rate in BEST.items()}
    assert "tuning.jsonl" in table.caption(tuned)


def test_tuning_needs_images(recipe):
    """Oracle: the message names what was given."""
    config = dataclasses.replace(recipe.variants["tanh/backprop"], data=GaussianTargets())
    made = Recipe("t", "p", 1, {"a": config}, (0,), tuning=Tuning(10, 1))
    with pytest.raises(InputError, match="GaussianTargets"):
        tuning.grid(made)


@pytest.mark.parametrize("wrong", [{"factor": 1.0}, {"num_epochs": 0}, {"num_validation": 0}])
def test_a_search_that_cannot_be_made(wrong):
    """Oracle: the message names the value."""
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        Tuning(**({"num_epochs": 1.0, "num_validation": 10} | wrong))


def orders(recipe, *pairs):
    return dataclasses.replace(recipe, orders=tuple(Order(*pair, "table 9") for pair in pairs))


def test_orders_are_judged_by_paired_differences(recipe, records):
    """Oracle: closed form; the fixture's errors differ by 1 % and more, growing with the seed."""
    found = orders(
        recipe,
        ("tanh/backprop", "tanh/shallow"),
        ("tanh/shallow", "tanh/backprop"),
        ("tanh/backprop", "tanh/backprop"),
    )
    rows = table.orders(found, records)
    verdicts = [row.verdict for row in rows]
    assert verdicts == ["reproduced", "not reproduced: reversed", "not established"]
    # Errors are base + 0.1 place + 0.07 seed (place + 1), bases 2 and 8, places 0 and 2.
    assert rows[0].difference.mean == pytest.approx(2 - 8 - 0.2 - 0.14)
    shown = table.markdown(found, records)
    assert "| tanh/backprop below tanh/shallow | table 9 | -6.34" in shown


def test_an_order_of_unknown_variants_is_refused(recipe):
    """Oracle: the message names the nearest variant."""
    with pytest.raises(InputError, match="did you mean 'tanh/backprop'"):
        orders(recipe, ("tanh/backpropp", "tanh/shallow"))


def test_nothing_is_compared_before_its_runs(recipe, records):
    """Oracle: invariant; an order without runs of both sides has no row."""
    found = orders(recipe, ("relu/shallow", "relu/backprop"))
    assert table.orders(found, [r for r in records if r.variant != "relu/shallow"]) == []
    assert plan.matching(found, records)
