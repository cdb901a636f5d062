"""A run that was stopped, by whatever means, goes on as if it had not been.

Oracle: exact equivalence with the run that was left alone. A resume that is only close would make a
long experiment depend on where the machine stopped it.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

import dfa_jax
from dfa_jax import errors
from dfa_jax.rules import RULES
from dfa_jax.train import fit
from tests import helpers
from tests.train import killed, small

ROOTS = (pathlib.Path(dfa_jax.__file__).parents[1], pathlib.Path(__file__).parents[2])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run directories by rule, as SIGKILL left them."""
    folder = tmp_path_factory.mktemp("killed")
    cache = str(jax.config.jax_compilation_cache_dir)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, ROOTS)),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "tests.train.killed", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("rule", RULES)
def test_resume_of_a_killed_run_is_bit_identical(runs, rule):
    """Oracle: the same run undisturbed. Every leaf (feedback, moments, key) and every point of the
    curve must come back, or a resumed run is another experiment under the same name."""
    directory = runs / rule
    stopped_at = killed.latest(directory / "checkpoints")
    assert 0 < stopped_at < killed.NUM_EPOCHS * small.STEPS_PER_EPOCH

    straight = fit(killed.config(rule), progress=False)
    resumed = fit(killed.config(rule), run_dir=directory, resume=True, progress=False)

    helpers.assert_identical(small.plain(resumed.state), small.plain(straight.state))
    curve = small.without_time(straight.record.curve)
    assert small.without_time(resumed.record.curve) == curve
    lines = [json.loads(line) for line in (directory / "curve.jsonl").read_text().splitlines()]
    assert [point["step"] for point in lines] == [point["step"] for point in curve]
    seconds = [point["metrics"]["wall_seconds"] for point in lines]
    assert seconds == sorted(seconds)  # a resumed run's clock goes on where it stood


def test_some_run_was_killed_while_a_checkpoint_was_written(runs):
    """Oracle: the temporary folders that Orbax leaves. Without one, the test above would never have
    seen the moment at which a checkpoint is most easily lost."""
    assert list(runs.glob(f"*/checkpoints/{killed.UNFINISHED}")) or any(
        (runs / rule / "record.json").exists() for rule in RULES
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of three epochs: its directory and result."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    return directory, fit(small.config(), run_dir=directory, progress=False)
