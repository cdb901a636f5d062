"""Several processes are one run.

Oracle: the same run in one process on the same number of devices.
"""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from dfa_jax.train import fit
from tests.train import small
from tests.train.test_resume import ROOTS

RULE = {"rule": "direct_feedback_alignment", "optimizer": None}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(folder, number, devices, *changes, timeout="60", started=None):
    """What each process said and how it ended; `changes` are those of each, or of all."""
    port, processes = free_port(), []
    for own in range(number) if started is None else started:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, ROOTS)),
            "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "DFA_JAX_COORDINATOR": f"127.0.0.1:{port}",
            "DFA_JAX_NUM_PROCESSES": str(number),
            "DFA_JAX_PROCESS_ID": str(own),
            "DFA_JAX_TIMEOUT": timeout,
        }
        given = changes[own] if len(changes) > 1 else changes[0]
        command = [sys.executable, "-m", "tests.train.member", str(folder), str(devices)]
        process = subprocess.Popen(
            [*command, json.dumps(given)],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], said


def curve(folder):
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in ("step", "train_loss", "test_loss")} for line in lines]


@pytest.fixture(scope="module")
def alone():
    """The run of one process on eight devices."""
    return fit(small.config(RULE["rule"]), progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "devices"), [(2, 4), (4, 2), (4, 1)])
def test_processes_do_not_matter(tmp_path, alone, number, devices):
    """Exact equivalence, up to the order of float32 sums."""
    codes, said = run(tmp_path / "run", number, devices, {"rule": RULE["rule"]})
    assert codes == [0] * number, said
    found = curve(tmp_path / "run")
    assert len(found) == 3
    for ours, theirs in zip(found, alone.record.curve, strict=True):
        np.testing.assert_allclose(ours["train_loss"], theirs.train_loss, rtol=1e-5)
        np.testing.assert_allclose(ours["test_loss"], theirs.test_loss, rtol=1e-5)
