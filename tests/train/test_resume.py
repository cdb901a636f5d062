"""A run that was stopped, by whatever means, goes on as if it had not been.

Oracle: exact equivalence with the run that was left alone. A resume that is only close would make a
long experiment depend on where the machine stopped it.
"""

import dataclasses
import functools
import json
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import dfa_jax
from dfa_jax import errors
from dfa_jax.rules import RULES
from dfa_jax.train import checkpoint, fit, loop, records, sharding
from dfa_jax.train import directory as directory_module
from tests import helpers
from tests.train import hunted, killed, small

CONFIG = small.config()
LAST = 3 * small.STEPS_PER_EPOCH
ROOTS = (pathlib.Path(dfa_jax.__file__).parents[1], pathlib.Path(__file__).parents[2])


EVERYDAY = ("direct_feedback_alignment",)
IN_CI = ("kolen_pollack", "local_losses")  # with feedback that moves; with parameters of their own
OTHERS = tuple(rule for rule in RULES if rule not in EVERYDAY + IN_CI)


def started(module, *arguments):
    """What a module of the tests printed, run in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, ROOTS)),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def kill(tmp_path_factory):
    """`kill(rules)`: a folder with a run directory for each rule, as SIGKILL left it."""

    @functools.cache
    def run(rules):
        folder = tmp_path_factory.mktemp("killed")
        started("tests.train.killed", folder, *rules)
        # Orbax's folder of an unfinished write: the moments that matter most are among those tried.
        assert list(folder.glob(f"*/checkpoints/*{killed.UNFINISHED}*"))
        return folder

    return run


@pytest.mark.parametrize(
    "rule",
    [
        *EVERYDAY,
        *(pytest.param(rule, marks=pytest.mark.slow) for rule in IN_CI),
        *(pytest.param(rule, marks=helpers.NIGHTLY) for rule in OTHERS),
    ],
)
def test_resume_of_a_killed_run_is_bit_identical(kill, rule):
    """Oracle: the same run undisturbed. Every leaf (feedback, moments, key) and every point of the
    curve must come back, or a resumed run is another experiment under the same name."""
    together = next(rules for rules in (EVERYDAY, IN_CI, OTHERS) if rule in rules)
    directory = kill(together) / rule
    stopped_at = killed.latest(directory / "checkpoints")
    assert 0 < stopped_at < killed.NUM_EPOCHS * small.STEPS_PER_EPOCH
    # The same command once more must not lose the run.
    with pytest.raises(errors.InputError, match="--resume to go on"):
        fit(killed.config(rule), run_dir=directory, progress=False)

    straight = fit(killed.config(rule), progress=False)
    resumed = fit(
        killed.config(rule), run_dir=directory, resume=True, save_seconds=np.inf, progress=False
    )

    helpers.assert_identical(small.plain(resumed.state), small.plain(straight.state))
    curve = small.without_time(straight.record.curve)
    assert small.without_time(resumed.record.curve) == curve
    lines = [json.loads(line) for line in (directory / "curve.jsonl").read_text().splitlines()]
    assert [point["step"] for point in lines] == [point["step"] for point in curve]
    seconds = [point["metrics"]["wall_seconds"] for point in lines]
    assert seconds == sorted(seconds)  # a resumed run's clock goes on where it stood


KILLS = int(os.environ.get("DFA_JAX_TEST_KILLS", "2"))


@pytest.mark.nightly
def test_a_run_that_dies_again_and_again(tmp_path):
    """Oracle: the same runs undisturbed. Kills at random moments of many lives, between the start of
    the process and the end of the run; state and record must come back bit by bit."""
    said = started("tests.train.hunted", tmp_path, KILLS)
    print(said)
    assert len(said.splitlines()) == KILLS
    for directory in tmp_path.glob("[0-9]*"):
        config = hunted.config(KILLS, int(directory.name))
        straight = fit(config, progress=False)
        record = (directory / "record.json").read_text()
        ended = fit(config, run_dir=directory, resume=True, progress=False)
        helpers.assert_identical(small.plain(ended.state), small.plain(straight.state))
        found, expected = (
            dataclasses.asdict(one) | {"wall_seconds": None, "curve": small.without_time(one.curve)}
            for one in (records.parse_run(json.loads(record)), straight.record)
        )
        assert found == expected
        lines = [json.loads(line) for line in (directory / "curve.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [point["step"] for point in expected["curve"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run: its directory and its result."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, fit(CONFIG, run_dir=directory, progress=False)


@pytest.fixture
def stopped(whole, tmp_path):
    """A copy of that run as if it had been stopped after the last evaluation was noted, while its
    checkpoint was being written: a temporary folder with part of the files."""
    directory = tmp_path / "run"
    shutil.copytree(whole[0], directory)
    (directory / "record.json").unlink()
    last = directory / "checkpoints" / str(LAST)
    half = last.rename(last.with_name(f"{LAST}.orbax-checkpoint-tmp"))
    shutil.rmtree(half / "state" / "d")
    (half / "_CHECKPOINT_METADATA").unlink()
    return directory


def assert_as_if_never_stopped(directory, whole):
    """Resumes; state and curve must be those of the run that was left alone. Nothing goes on from
    there, so it writes no checkpoints, which cost more than the steps."""
    resumed = fit(CONFIG, run_dir=directory, resume=True, save_seconds=np.inf, progress=False)
    straight = whole[1]
    helpers.assert_identical(small.plain(resumed.state), small.plain(straight.state))
    curve = small.without_time(straight.record.curve)
    assert small.without_time(resumed.record.curve) == curve
    on_disk = [json.loads(line) for line in (directory / "curve.jsonl").read_text().splitlines()]
    assert [point["step"] for point in on_disk] == [point["step"] for point in curve]


def test_half_written_checkpoint_is_passed_over(stopped, whole):
    """Oracle: the run left alone. The checkpoint before the unfinished one counts, and the point of
    the curve that has no checkpoint is made again, once."""
    assert_as_if_never_stopped(stopped, whole)


@pytest.mark.parametrize("kept", [1, 40, -2], ids=["one byte", "some", "all but the brace"])
def test_curve_with_a_line_cut_short(stopped, whole, kept):
    """Oracle: the run left alone. A stop in the middle of an appended line must not lose the
    run."""
    path = stopped / "curve.jsonl"
    *lines, last = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines) + last[:kept])
    assert_as_if_never_stopped(stopped, whole)


def test_resume_of_a_finished_run_changes_nothing(whole, tmp_path, monkeypatch):
    """Oracle: the finished run. A command line with --resume may be repeated without thought: of the
    checkpoints that are kept the newest counts, and no step is taken again."""
    shutil.copytree(whole[0], tmp_path / "run")
    assert len(checkpoints_of(tmp_path / "run")) == 2
    monkeypatch.setattr(loop, "run_steps", lambda *_, **__: pytest.fail("a step is taken again"))
    assert_as_if_never_stopped(tmp_path / "run", whole)


def test_stop_while_the_curve_is_rewritten_loses_nothing(stopped, whole, monkeypatch):
    """Oracle: the run left alone. Resuming shortens the curve; a second stop just then must leave
    the old curve or the new one, or all measurements up to there are gone."""

    def stop(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(directory_module.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            directory_module.RunDirectory(stopped).curve_until(small.STEPS_PER_EPOCH)
    assert_as_if_never_stopped(stopped, whole)


def spoil(path, how):
    """Damages one file."""
    content = path.read_bytes()
    middle = len(content) // 2
    if how == "missing":
        path.unlink()
    elif how == "a byte":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 0x55]) + content[middle + 1 :])
    else:
        path.write_bytes(content[: {"half": middle, "empty": 0}[how]])


@pytest.mark.parametrize("how", ["half", "empty", "missing", "a byte"])
def test_no_damage_to_a_file_gives_another_state(whole, tmp_path, how):
    """Oracle: the state that was written. Each file of a checkpoint is damaged in turn: what is
    restored is that state, bit by bit, or nothing is."""
    like = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), whole[1].state
    )
    shutil.copytree(newest(whole[0]), tmp_path / str(LAST))
    refused = []
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        spoil(path, how)
        with checkpoint.Checkpoints(tmp_path, CONFIG) as checkpoints:
            assert checkpoints.steps[0] == LAST
            try:
                state, _ = checkpoints.restore(like, LAST)
            except checkpoint.DamagedError:
                refused.append(path)
            else:
                helpers.assert_identical(small.plain(state), small.plain(whole[1].state))
        path.write_bytes(content)
    assert len(refused) >= 2  # data and notes at least


def test_digest_is_that_of_the_formula():
    """Closed form, in Python's integers; and any permutation of the entries has another one."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4) - 5
    state = small.state(small.program(CONFIG, small.mesh()))._replace(params={"w": values})
    leaves = [path for path, _ in jax.tree.leaves_with_path(checkpoint._parts(state))]
    (at,) = (i for i, path in enumerate(leaves) if jax.tree_util.keystr(path) == "['params']['w']")
    c, bits = 0x9E3779B1, values.view(np.uint32).tolist()
    expected = sum((2 * (i * c + j * 3 * c) + 1) * bits[i][j] for i in range(3) for j in range(4))
    assert checkpoint.digest(state)[at] == expected % 2**32
    swapped = state._replace(params={"w": values[::-1]})
    assert checkpoint.digest(swapped)[at] != expected % 2**32


BROKEN = {
    "missing": lambda step: shutil.rmtree(step / "state"),
    "truncated": lambda step: [spoil(path, "half") for path in (step / "state").glob("**/d/*")],
    "foreign": lambda step: rewrite_notes(step, lambda n: n["config"].update(seed=7)),
    "altered": lambda step: rewrite_notes(step, lambda n: n["digest"].reverse()),
}
SAID = {
    "missing": "cannot be read",
    "truncated": "cannot be read",
    "foreign": "another run .seed: 7",
    "altered": "is not what was",
}


def rewrite_notes(step, change):
    path = step / "notes" / "metadata"
    notes = json.loads(path.read_text())
    change(notes)
    path.write_text(json.dumps(notes))


@pytest.mark.parametrize("name", BROKEN)
def test_newest_good_checkpoint_is_taken(stopped_at_the_end, whole, name, capsys):
    """Oracle: the run left alone. The damaged one is named, and kept where it can be looked at."""
    BROKEN[name](newest(stopped_at_the_end))
    assert_as_if_never_stopped(stopped_at_the_end, whole)
    assert re.search(rf"checkpoints/{LAST} .*{SAID[name]}.*damaged", capsys.readouterr().err)
    assert (stopped_at_the_end / "damaged" / str(LAST)).exists()


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


HOSTILE = {"metadata": "meta|_sharding|manifest", "arrays": "/d/", "all": ""}


@pytest.mark.parametrize(
    "which",
    ["all", *(pytest.param(name, marks=pytest.mark.slow) for name in ("metadata", "arrays"))],
)
def test_a_hostile_checkpoint_runs_nothing(stopped_at_the_end, whole, tmp_path, which):
    """Proof of absence: pickles that would make a file lie where Orbax's files were, and the file
    never appears. The checkpoint before is taken; without one, the run is refused."""
    marker = tmp_path / "marker"
    bomb = pickle.dumps(Bomb(marker))
    pickle.loads(bomb).close()
    marker.unlink()  # it works

    def plant(step):
        files = [path for path in step.rglob("*") if path.is_file()]
        hit = [path for path in files if re.search(HOSTILE[which], str(path), re.IGNORECASE)]
        assert hit
        for path in hit:
            path.write_bytes(bomb)

    plant(newest(stopped_at_the_end))
    assert_as_if_never_stopped(stopped_at_the_end, whole)
    (older,) = checkpoints_of(stopped_at_the_end)
    plant(older)
    with pytest.raises(errors.InputError, match="no other is left"):
        fit(CONFIG, run_dir=stopped_at_the_end, resume=True, progress=False)
    assert not marker.exists()


@pytest.fixture
def stopped_at_the_end(whole, tmp_path):
    """A copy of the run as if it had been stopped before its record was written."""
    shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "run" / "record.json").unlink()
    return tmp_path / "run"


DAMAGE = {
    "no good checkpoint": (
        lambda run: [shutil.rmtree(step / "state") for step in checkpoints_of(run)],
        "cannot be read.*no other is left",
    ),
    "no checkpoint": (
        lambda run: shutil.rmtree(run / "checkpoints"),
        "has 3 points and there is no checkpoint",
    ),
    "curve gone": (lambda run: (run / "curve.jsonl").unlink(), f"no evaluation at step {LAST}"),
    "curve damaged": (
        lambda run: (run / "curve.jsonl").write_text('{"step": 4\n{}\n'),
        "curve.jsonl, line 1 is not an evaluation",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_the_remedy_given(whole, tmp_path, name):
    """Oracle: the contract. What cannot be resumed is refused in one line, never resumed in part
    and never begun again in silence."""
    shutil.copytree(whole[0], tmp_path / "run")
    damage, message = DAMAGE[name]
    damage(tmp_path / "run")
    with pytest.raises(errors.InputError, match=message) as caught:
        fit(CONFIG, run_dir=tmp_path / "run", resume=True, progress=False)
    assert "--overwrite" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def newest(run):
    return run / "checkpoints" / str(LAST)


def checkpoints_of(run):
    return [path for path in (run / "checkpoints").iterdir() if path.name.isdecimal()]


def test_checkpoint_goes_on_on_another_mesh(tmp_path):
    """Oracle: exact equivalence with the mesh that wrote it, up to the order of float32 sums (1e-6
    of the largest entry). A run must be able to move to a machine of another shape; its feedback
    and every other leaf arrive bit by bit."""
    first = small.program(small.config("direct_feedback_alignment"), small.mesh(8))
    then = small.program(small.config("direct_feedback_alignment"), small.mesh(4, 2))
    rows = small.order(3)
    begun, _ = loop.run_steps(small.state(first), small.data(first.mesh), rows, 3, program=first)
    config = small.config("direct_feedback_alignment")
    with checkpoint.Checkpoints(tmp_path / "checkpoints", config) as checkpoints:
        checkpoints.save(begun, checkpoint.Progress())
    with checkpoint.Checkpoints(tmp_path / "checkpoints", config) as checkpoints:
        shardings = sharding.state_shardings(then.mesh, begun)
        like = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), begun, shardings
        )
        moved, _ = checkpoints.restore(like, 3)
    helpers.assert_identical(small.plain(moved), small.plain(begun))
    assert moved.params["layer_0"]["Dense_0"]["kernel"].sharding.mesh.shape == then.mesh.shape
    assert not moved.rule_state["layer_0"].sharding.is_fully_replicated

    stayed, _ = loop.run_steps(begun, small.data(first.mesh), rows, 3, program=first)
    moved, _ = loop.run_steps(moved, small.data(then.mesh), rows, 3, program=then)
    assert int(moved.step) == 6
    helpers.assert_close(moved.params, stayed.params, 1e-6)
    helpers.assert_identical(moved.rule_state, stayed.rule_state)


@pytest.mark.slow
def test_a_run_goes_on_under_another_mesh(tmp_path):
    """Oracle: the run left alone on eight devices, up to the order of sums. Two thirds are computed
    there, with the batch split; the rest with widths and the state split too."""
    straight = fit(CONFIG, run_dir=tmp_path / "run", progress=False)
    (tmp_path / "run" / "record.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(LAST))
    elsewhere = dataclasses.replace(CONFIG, fsdp=True, model_axis=2)
    resumed = fit(elsewhere, run_dir=tmp_path / "run", resume=True, progress=False)
    assert [one.step for one in resumed.record.curve] == [4, 8, 12]
    assert resumed.record.curve[:2] == straight.record.curve[:2]
    helpers.assert_close(small.plain(resumed.state), small.plain(straight.state), 1e-4)
