"""The table against an independent recomputation from the raw lines of JSON."""

import dataclasses
import json
import re
import statistics

import pytest

from dfa_jax.report import series, table, text
from dfa_jax.report.recipe import Expected
from dfa_jax.report.statistics import Summary
from dfa_jax.train import records as files
from tests.report import made_up

T_975_2 = 4.302652729911275  # Student's t, two degrees of freedom, from printed tables


def test_numbers_are_those_of_the_records(recipe, records, tmp_path):
    """Oracle: independent implementation; `statistics` over the parsed JSON lines."""
    for record in records:
        files.append(tmp_path / "records.jsonl", record)
    raw = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    shown = table.markdown(recipe, records)
    for variant in recipe.variants:
        runs = [run for run in raw if run["variant"] == variant]
        errors = [100 - 100 * run["curve"][-1]["test_accuracy"] for run in runs]
        half_width = T_975_2 * statistics.stdev(errors) / 3**0.5
        line = next(line for line in shown.splitlines() if line.startswith(f"| {variant} |"))
        assert f"| 3 | {statistics.mean(errors):.2f} ± {half_width:.2f} |" in line


def test_difference_from_backprop_of_the_same_group(recipe, records):
    """Oracle: closed form; the fixture's differences grow with the seed by a known step."""
    rows = {row.variant: row for row in table.rows(recipe, records)}
    difference = rows["relu/direct_feedback_alignment"].difference
    # Errors are base + 0.1 place + 0.07 seed (place + 1), places 3 and 4.
    assert difference.mean == pytest.approx(1 + 0.1 + 0.07)
    assert difference.half_width == pytest.approx(T_975_2 * 0.07 / 3**0.5)
    assert rows["relu/backprop"].difference is None


def test_missing_runs_leave_a_shorter_table(recipe, records):
    """Oracle: invariant; a partial table has the variants that ran, with their own n."""
    rows = table.rows(recipe, records[:8])
    assert [row.variant for row in rows] == list(recipe.variants)
    assert [row.test.num_seeds for row in rows] == [2, 2, 1, 1, 1, 1]


def test_provenance_stands_beside_every_published_number(recipe, records):
    """Oracle: invariant, over every number of the recipe."""
    shown = table.markdown(recipe, records)
    numbers = re.findall(r"2\.00 ± 0\.10 \(([^)]*)\)", shown)
    assert numbers == ["memory, unverified"]
    assert "Published numbers: table 1." in shown


def test_columns_without_content_are_left_out(recipe, records):
    """Oracle: definition; without published numbers there are neither they nor verdicts."""
    plain = dataclasses.replace(recipe, expected=())
    assert "verdict" in table.grid(table.rows(recipe, records))[0]
    assert "verdict" not in table.grid(table.rows(plain, records))[0]


@pytest.mark.parametrize(
    ("mean", "half_width", "seeds", "tolerance", "expected"),
    [
        (2.0, 0.1, 5, None, "reproduced, gap +0.00"),
        (2.25, 0.1, 5, 0.2, "reproduced, gap +0.25"),
        (2.35, 0.1, 5, 0.2, "not reproduced, gap +0.35"),
        (1.65, 0.1, 5, 0.2, "not reproduced, gap -0.35"),
        (2.05, 0.1, 5, None, "reproduced, gap +0.05"),
        (2.15, 0.1, 5, None, "not reproduced, gap +0.15"),
        (2.0, 9.9, 2, 0.2, "2 of at least 3 seeds, gap +0.00"),
        (2.0, None, 1, 0.2, "1 of at least 3 seeds, gap +0.00"),
    ],
)
def test_verdict(mean, half_width, seeds, tolerance, expected):
    """Oracle: definition; intervals meet or not, and two seeds prove nothing."""
    number = Expected("v", "test error", 2.0, tolerance, "table 1", "paper table")
    assert text.verdict(Summary(mean, half_width, seeds), number) == expected


@pytest.mark.parametrize(
    ("steps", "errors", "expected"),
    [
        ((390, 780, 781), (60.0, 50.0, 11.0), (390 * 50 + 11) / 391),
        ((390, 780), (60.0, 50.0), 50.0),
        ((10, 20, 25), (60.0, 50.0, 40.0), 40.0),
        ((1,), (60.0,), 60.0),
    ],
)
def test_training_error_of_a_remainder(recipe, steps, errors, expected):
    """Oracle: closed form; the mean over batches of the last two intervals, each by its length."""
    run = made_up.record(recipe, "tanh/backprop", 0, errors)
    points = [
        dataclasses.replace(point, step=step, train_accuracy=1 - error / 100)
        for point, step, error in zip(run.curve, steps, errors, strict=True)
    ]
    run = dataclasses.replace(run, curve=tuple(points))
    assert series.final_train_error(run) == pytest.approx(expected)
