"""A run directory is never overwritten, resumed or mistaken for one unasked.

Oracle: the contract in `RunDirectory`. Hours of training are lost by one wrong answer here, so
every refusal is checked to have changed nothing.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from dfa_jax.errors import InputError
from dfa_jax.optim import Optimizer
from dfa_jax.train import RunRecord, fit, tensorboard
from dfa_jax.train.directory import RunDirectory
from tests.train import small

CONFIG = small.config()


def claim(path, config=CONFIG, *, resume=False, overwrite=False):
    return RunDirectory.open(path, config, resume=resume, overwrite=overwrite)


def contents(path):
    """Every file below a folder, by name, with its bytes; not the lock, which has none."""
    files = [file for file in path.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def assert_refused(path, message, config=CONFIG, **flags):
    """One line that holds `message`, and not a byte changed."""
    before, locked = contents(path), (path / ".lock").exists()
    with pytest.raises(InputError, match=message) as caught:
        claim(path, config, **flags)
    assert len(str(caught.value).splitlines()) == 1
    assert contents(path) == before
    assert (path / ".lock").exists() == locked


@pytest.fixture
def run(tmp_path):
    """A run directory with something in every file."""
    path = tmp_path / "run"
    directory = claim(path)
    (path / "curve.jsonl").write_text("{}\n")
    (path / "notes.txt").write_text("the user's own")
    directory.checkpoints.mkdir()
    (directory.checkpoints / "state").write_text("weights")
    return path


def test_new_and_empty_folders_are_taken(tmp_path):
    """Under every flag but both: --resume on a fresh folder starts, so a job script needs no
    test."""
    for name, flags in {
        "plain": {},
        "again": {"resume": True},
        "over": {"overwrite": True},
    }.items():
        (tmp_path / "deep" / name).mkdir(parents=True)
        claim(tmp_path / "deep" / name, **flags)
        claim(tmp_path / "deeper" / name / "new", **flags)
        stored = json.loads((tmp_path / "deeper" / name / "new" / "config.json").read_text())
        assert stored["rule"] == {"name": "backprop"}


def test_taken_without_a_flag(run):
    """Neither flag: refused, with both remedies."""
    assert_refused(run, "--resume to go on with it, --overwrite")


def test_both_flags(run):
    """--resume and --overwrite contradict each other, and the wrong guess deletes a run."""
    assert_refused(run, "exclude each other", resume=True, overwrite=True)


def test_overwrite_starts_from_nothing(run):
    """No curve, checkpoint or record of the old run may survive into the new one."""
    claim(run, overwrite=True).drop_old()
    assert set(contents(run)) == {"config.json"}


def test_resume_keeps_everything(run):
    """Taking up a run changes none of its files."""
    before = contents(run)
    claim(run, resume=True)
    assert contents(run) == before


@pytest.mark.parametrize("flag", ["resume", "overwrite", None])
@pytest.mark.parametrize(
    "foreign",
    [
        {"thesis.tex": "years of work"},
        {"thesis.tex": "years of work", "config.json": '{"model_type": "bert", "rule": 1}'},
        {"config.json": "[]", "weights.bin": "another program's"},
    ],
    ids=["no config", "another program's config", "config that is a list"],
)
def test_what_is_not_a_run_is_refused_under_every_flag(tmp_path, foreign, flag):
    """--overwrite in the home folder must not empty it; `config.json` is a common name."""
    for name, text in foreign.items():
        (tmp_path / name).write_text(text)
    assert_refused(tmp_path, "is not a run", **({flag: True} if flag else {}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"optimizer": Optimizer(learning_rate=0.5)}, "learning_rate: 0.005 -> 0.5"),
        ({"rule": small.config("shallow").rule}, "rule.name: backprop -> shallow"),
    ],
)
def test_resume_with_another_configuration_names_the_field(run, changes, message):
    """Two configurations in one curve would be a record of neither."""
    assert_refused(run, message, dataclasses.replace(CONFIG, **changes), resume=True)


def test_a_run_goes_on_under_another_mesh(run):
    """Documented contract: where a run is computed is no part of what it is."""
    claim(run, dataclasses.replace(CONFIG, fsdp=True, model_axis=2, layer_axis=2), resume=True)


def test_a_setting_younger_than_the_run_had_its_default(run):
    """Closed form: a run stored before a setting existed is the same run at that setting's default.

    Else every new option would make all committed records worthless.
    """
    stored = json.loads((run / "config.json").read_text())
    del stored["model_axis"], stored["optimizer"]["clip_norm"]
    (run / "config.json").write_text(json.dumps(stored))
    claim(run, resume=True)
    (run / "config.json").write_text(json.dumps(stored))
    clipped = dataclasses.replace(CONFIG.optimizer, clip_norm=0.5)
    changed = dataclasses.replace(CONFIG, optimizer=clipped)
    assert_refused(run, "optimizer.clip_norm: 0.0 -> 0.5", changed, resume=True)


def test_data_may_move(run):
    """Where the data lies is no part of the run: it may differ on the machine that resumes."""
    elsewhere = dataclasses.replace(CONFIG.data, data_dir="/elsewhere")
    claim(run, dataclasses.replace(CONFIG, data=elsewhere), resume=True)


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_a_run_is_open_in_one_process(run, flag):
    """Two processes in one run would mix their curves. The other one is a process of its own, as a job
    that a scheduler started again too early; when it is killed, the run is free, and back."""
    program = (
        "import json, pathlib, sys\n"
        "from dfa_jax.train.directory import RunDirectory\n"
        "from tests.train import small\n"
        "config = small.config()\n"
        "flags = {'resume': False, 'overwrite': False, sys.argv[2]: True}\n"
        "held = RunDirectory.open(pathlib.Path(sys.argv[1]), config, **flags)\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    before = contents(run)
    command = [sys.executable, "-c", program, str(run), flag]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"open\n"
        for flags in ({}, {flag: True}):
            assert_refused(run, r"open in another process; wait .*\.lock\)", **flags)
        other.kill()
    claim(run, resume=True)
    assert contents(run) == before


def test_a_closed_run_can_be_opened(run):
    """Contract of `close`; `overwrite` takes the lock along with nothing."""
    first = claim(run, overwrite=True)
    assert_refused(run, "open in another process", resume=True)
    first.close()
    claim(run, resume=True)


@pytest.mark.parametrize(
    "text", [b'{"rule": ', b"", b"\xff\xfe\x00"], ids=["cut", "empty", "binary"]
)
def test_damaged_configuration(run, text):
    """Refused by name when resuming; --overwrite is the remedy that it names, and works."""
    (run / "config.json").write_bytes(text)
    assert_refused(run, "config.json is damaged .*--overwrite", resume=True)
    claim(run, overwrite=True)


def test_a_file_and_a_path_below_a_file(tmp_path):
    """A run directory that cannot be one."""
    (tmp_path / "file").write_text("x")
    assert_refused(tmp_path / "file", "is a file")
    assert_refused(tmp_path / "file" / "run", "cannot be used .*can be written to")


@pytest.fixture
def unprivileged():
    """A folder of our own, as a user who is bound by permissions (root is not)."""
    with tempfile.TemporaryDirectory() as folder:
        root = os.geteuid() == 0
        pathlib.Path(folder).chmod(0o777)
        if root:
            os.seteuid(65534)
        try:
            own = pathlib.Path(folder) / "own"
            own.mkdir()
            yield own
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize("taken", [False, True])
def test_read_only(unprivileged, taken):
    """A read-only place is refused at the door, before an hour of training, and on --resume too."""
    path = unprivileged / "run"
    if taken:
        claim(path)
        path.chmod(0o555)
    else:
        unprivileged.chmod(0o555)
    try:
        assert_refused(path, "cannot be used .*can be written to", resume=True)
    finally:
        path.chmod(0o777) if taken else unprivileged.chmod(0o777)


def test_nothing_is_written_without_a_directory(tmp_path, monkeypatch):
    """`fit` in a notebook or a test leaves no file behind."""
    monkeypatch.chdir(tmp_path)
    fit(CONFIG, progress=False)
    assert not contents(tmp_path)


def test_events_are_what_tensorboardx_would_write(tmp_path):
    """Independent implementation: tensorboardX's own record writer, given the events that were read
    back, makes the same bytes."""
    path = tmp_path / "tensorboard" / "events.out.tfevents.1"
    for step in (4, 8):
        tensorboard.append(path, step, {"test_loss": 0.5 * step, "norm/layer_0": 2.0})
    theirs = RecordWriter(str(tmp_path / "theirs"))
    content, found = path.read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")
        found.append(Event.FromString(content[12 : 12 + length]))
        theirs.write(content[12 : 12 + length])
        content = content[16 + length :]
    theirs.close()
    assert (tmp_path / "theirs").read_bytes() == path.read_bytes()
    assert found[0].file_version == "brain.Event:2"
    assert [event.step for event in found[1:]] == [4, 8]
    values = {value.tag: value.simple_value for value in found[2].summary.value}
    assert values == {"test_loss": 4.0, "norm/layer_0": 2.0}


def test_record_of_the_whole_run(tmp_path):
    """The record on disk is the record returned; TensorBoard has every point of the curve."""
    result = fit(CONFIG, run_dir=tmp_path / "run", progress=False)
    stored = json.loads((tmp_path / "run" / "record.json").read_text())
    assert stored == json.loads(json.dumps(dataclasses.asdict(result.record)))
    assert {field.name for field in dataclasses.fields(RunRecord)} == set(stored)
    curve = (tmp_path / "run" / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in curve] == stored["curve"]
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert events.read_bytes().count(b"test_accuracy") == len(curve)
