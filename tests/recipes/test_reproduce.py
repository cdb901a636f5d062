"""The script as a user meets it."""

import os
import pathlib
import subprocess
import sys

import pytest

from dfa_jax.errors import InputError
from dfa_jax.report import catalogue, publish
from dfa_jax.report.shrink import shrink
from dfa_jax.train import records as files
from tests.report import made_up
from tests.test_bad_input import script

ROOT = pathlib.Path(__file__).parents[2]


def reproduce(*arguments):
    """Runs the script in a process of its own."""
    command = [sys.executable, "scripts/reproduce.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # as if this checkout were installed
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "which RECIPE?", marks=pytest.mark.slow),
        (["quikstart"], "did you mean 'quickstart'?"),
        pytest.param(
            ["quickstart", "--seeds", "0"],
            "0 seeds; expected at least 1",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["quickstart", "--only", "backpropp"],
            "unknown variant 'backpropp'; did you mean 'backprop'?",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["quickstart", "--report-only", "--results-dir", "/nonexistent"],
            "no runs of 'quickstart'",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message):
    """Oracle: the convention of every script; one line on standard error, no traceback."""
    done = reproduce(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("reproduce.py: error: ")
    assert message in line


def test_a_misspelt_option_is_refused():
    """Oracle: as above, in this process."""
    with pytest.raises(InputError, match="did you mean '--seeds'?"):
        script("reproduce")(["quickstart", "--sedes", "3"])


def test_list_shows_what_is_in(tmp_path, capsys):
    """Oracle: definition; each recipe with its paper, its time, and how many of its runs are in."""
    quick = catalogue.load("quickstart")
    for seed in (0, 1):
        record = made_up.record(quick, "shallow", seed, (3.0,))
        files.append(tmp_path / "quickstart" / publish.RECORDS, record)
    script("reproduce")(["--list", "--results-dir", str(tmp_path)])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for name in catalogue.names():
        found = catalogue.load(name)
        assert found.paper in lines[name]
        assert f"{found.minutes:g} min" in lines[name]
    assert "2 of 20 runs" in lines["quickstart"]
    assert " none " in lines["direct_feedback_alignment/depth"]


def test_progress_of_every_kind(tmp_path):
    """Oracle: definition; none, some, complete, and outdated once the configuration differs."""
    quick = catalogue.load("quickstart")
    small = shrink(quick)
    path = tmp_path / "quickstart" / publish.RECORDS
    assert publish.progress(small, tmp_path) == "none"
    for k, variant in enumerate(small.variants, start=1):
        files.append(path, made_up.record(small, variant, 0, (3.0,)))
        expected = "complete" if k == 4 else f"{k} of 4 runs"
        assert publish.progress(small, tmp_path) == expected
    assert publish.progress(quick, tmp_path) == "outdated"
