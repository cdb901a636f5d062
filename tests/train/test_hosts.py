"""Several processes are one run.

Oracle: the same run in one process on the same number of devices.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from dfa_jax.errors import InputError
from dfa_jax.train import fit, hosts
from tests import helpers
from tests.train import killed, meeting, small
from tests.train.test_resume import ROOTS

RULE = "direct_feedback_alignment"


def run(folder, number, devices, *changes, **options):
    """What each process said and how it ended; `changes` are those of each, or of all."""
    processes = start(folder, number, devices, *changes, **options)
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], said


def start(folder, number, devices, *changes, timeout="60", started=None, cramped=None):
    """The processes; a `{}` in the folder is the number of each. The cramped one can write small files."""
    places, processes = meeting.environments(number), []
    for own in range(number) if started is None else started:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, ROOTS)),
            "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **places[own],
            "DFA_JAX_TIMEOUT": timeout,
            "JAX_ENABLE_COMPILATION_CACHE": str(cramped is None),  # to which it would write halves
        }
        given = changes[own] if len(changes) > 1 else changes[0]
        own_folder = str(folder).format(own)
        command = [sys.executable, "-m", "tests.train.member", own_folder, str(devices)]
        process = subprocess.Popen(
            [*command, json.dumps(given)],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if own == cramped:
            most = 200 if own else 3000  # the first one writes the configuration too
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
        processes.append(process)
    return processes


def curve(folder):
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in ("step", "train_loss", "test_loss")} for line in lines]


@pytest.fixture(scope="module")
def alone():
    """The run of one process on eight devices."""
    return fit(small.config(RULE), progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "devices"), [(4, 2)])
def test_processes_do_not_matter(tmp_path, alone, number, devices):
    """Exact equivalence, up to the order of float32 sums; other layouts are in `test_layouts`."""
    codes, said = run(tmp_path / "run", number, devices, {"rule": RULE})
    assert codes == [0] * number, said
    found = curve(tmp_path / "run")
    assert len(found) == 3
    for ours, theirs in zip(found, alone.record.curve, strict=True):
        np.testing.assert_allclose(ours["train_loss"], theirs.train_loss, rtol=1e-5)
        np.testing.assert_allclose(ours["test_loss"], theirs.test_loss, rtol=1e-5)


@pytest.mark.nightly  # `test_layouts` has it for checkpoints, with the digests
def test_another_number_of_processes_goes_on(tmp_path, alone):
    """The digest vouches for the bits of a checkpoint that two processes wrote and one reads; the curve
    of a run that two begin and one ends is that of one left alone."""
    folder = tmp_path / "run"
    codes, said = run(folder, 2, 4, {"rule": RULE, "num_epochs": 3})
    assert codes == [0, 0], said
    (folder / "record.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "12")
    resumed = fit(small.config(RULE), run_dir=folder, resume=True, progress=False)
    helpers.assert_close(small.plain(resumed.state), small.plain(alone.state), 1e-4)
    for ours, theirs in zip(resumed.record.curve, alone.record.curve, strict=True):
        np.testing.assert_allclose(ours.test_loss, theirs.test_loss, rtol=1e-5)
    assert not (folder / "damaged").exists()  # the digest of two processes is that of one


@pytest.mark.slow
@pytest.mark.parametrize("cramped", helpers.at_night((0, 1), 1))
def test_a_process_that_fails_alone_ends_all(tmp_path, cramped):
    """Documented contract: one says what failed, the other one that and where, and both exit with 2 and
    soon. Without it the other waits in Orbax for five minutes, and JAX aborts both. What was saved
    before is whole: here nothing was."""
    processes = start(tmp_path / "run", 2, 2, {"rule": RULE, "fsdp": True}, cramped=cramped)
    said = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    lines = [one.splitlines() for one in said]  # not a line for every array, as Orbax has it
    ((own,), (other,)) = lines[cramped], lines[1 - cramped]
    assert own.startswith("member: error: the checkpoint of step 4 cannot be written")
    assert other.startswith(f"stopped by an error of process {cramped}: the checkpoint of step 4")
    found = fit(small.config(RULE), run_dir=tmp_path / "run", resume=True, progress=False)
    assert len(found.record.curve) == 3


@pytest.mark.slow
def test_a_preemption_of_one_process_stops_all_and_loses_nothing(tmp_path):
    """Oracle: the run left alone, in another number of processes. JAX has a handler of SIGTERM of its
    own, which would take the signal away."""
    changes = {"num_epochs": 20, "rule": RULE}
    processes = start(tmp_path / "run", 2, 4, changes)
    killed.wait_for(tmp_path / "run" / "checkpoints", small.STEPS_PER_EPOCH)
    processes[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert all("the state is saved; go on" in one for one in said), said
    assert killed.latest(tmp_path / "run" / "checkpoints") < 20 * small.STEPS_PER_EPOCH

    config = small.config(RULE, num_epochs=20)
    straight = fit(config, progress=False)
    resumed = fit(config, run_dir=tmp_path / "run", resume=True, progress=False)
    helpers.assert_close(small.plain(resumed.state), small.plain(straight.state), 1e-3)
    assert len(resumed.record.curve) == 20
    for ours, theirs in zip(resumed.record.curve, straight.record.curve, strict=True):
        np.testing.assert_allclose(ours.test_loss, theirs.test_loss, rtol=1e-3)


@pytest.mark.slow
def test_folders_of_each_process_are_refused(tmp_path):
    """Documented contract: one line in every process, where they would wait ten minutes for each
    other's files. The second process's folder is there, and another one."""
    (tmp_path / "run 1").mkdir()
    codes, said = run(tmp_path / "run {}", 2, 1, {"rule": RULE})
    assert codes == [2, 2], said
    assert all("process 1 of 2 does not see the files that process 0" in one for one in said)


@pytest.mark.slow
def test_processes_that_disagree_are_refused(tmp_path):
    """Documented contract: one line in every process, and the setting by name where it differs."""
    given = [{"rule": RULE}, {"rule": RULE, "seed": 3}]
    codes, said = run(tmp_path / "run", 2, 1, *given)
    assert codes == [2, 2], said
    assert all("process 1 of 2 has another configuration than process 0" in one for one in said)
    assert "(here seed: 0 -> 3)" in said[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_that_is_taken_is_refused_by_all(tmp_path):
    """Documented contract: what the first process finds wrong is said by every one."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    codes, said = run(tmp_path / "run", 2, 1, {"rule": RULE})
    assert codes == [2, 2], said
    assert all("exists and is not a run" in one for one in said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("started", "message"),
    [
        pytest.param((0, 2), "process 1(, 2)? did not come at", marks=pytest.mark.nightly),
        ((1, 2), "cannot be used by process [12] of 3 in 5 s"),
    ],
    ids=["one is missing", "the first is missing"],
)
def test_processes_that_never_come_are_not_waited_for(tmp_path, started, message):
    """Documented contract: a bounded time, and one line in each process."""
    codes, said = run(tmp_path / "run", 3, 1, {"rule": RULE}, timeout="5", started=started)
    assert codes == [2, 2], said
    assert re.search(message, said[0])
    assert all(len(one.splitlines()) == 1 and "error:" in one for one in said), said


ADDRESS = {
    "DFA_JAX_COORDINATOR": "localhost:1234",
    "DFA_JAX_NUM_PROCESSES": "2",
    "DFA_JAX_PROCESS_ID": "1",
}


def test_environment_is_read():
    """Documented contract."""
    found = {"coordinator_address": "localhost:1234", "num_processes": 2, "process_id": 1}
    assert hosts._options(ADDRESS, slurm=False) == found
    assert hosts._options({}, slurm=True) is None
    assert hosts._options({"SLURM_STEP_NUM_TASKS": "1"}, slurm=True) is None
    assert hosts._options({"SLURM_STEP_NUM_TASKS": "4"}, slurm=True) == {}
    assert hosts._options({"SLURM_STEP_NUM_TASKS": "4"}, slurm=False) is None
    assert hosts._options({"DFA_JAX_DISTRIBUTED": "1"}, slurm=False) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"DFA_JAX_PROCESS_ID": ""}, "DFA_JAX_COORDINATOR is set and DFA_JAX_PROCESS_ID is not"),
        ({"DFA_JAX_PROCESS_ID": "2"}, "DFA_JAX_PROCESS_ID 2; expected"),
        ({"DFA_JAX_NUM_PROCESSES": "two"}, "DFA_JAX_NUM_PROCESSES is 'two'; expected a whole"),
        ({"DFA_JAX_COORDINATOR": "here"}, "DFA_JAX_COORDINATOR is 'here'.*host:port"),
    ],
)
def test_bad_environments_are_refused(change, message):
    """Documented contract: the variable, its value, what was expected."""
    with pytest.raises(InputError, match=message):
        hosts._options(ADDRESS | change, slurm=True)
