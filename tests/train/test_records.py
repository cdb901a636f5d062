"""Records are data that outlive the program: whole lines, strict JSON, and where they came from."""

import dataclasses
import json
import math
import re
import threading

import filelock
import jax
import pytest

import dfa_jax
from dfa_jax.data import ImageData
from dfa_jax.errors import InputError
from dfa_jax.train import Evaluation, RunRecord, fit, records
from tests.train import small


@pytest.fixture(scope="module")
def record():
    """A real one, with everything measured; the data's place on this machine is given."""
    data = ImageData(num_train=64, num_test=24, data_dir="/home/someone/secret")
    config = small.config("direct_feedback_alignment", data=data, alignment_examples=16)
    return fit(config, progress=False).record


def test_round_trip(tmp_path, record):
    """Oracle: equality of frozen values. Tables are made from what is read back."""
    other = dataclasses.replace(record, seed=7, variant="tanh/direct_feedback_alignment")
    path = tmp_path / "results" / "records.jsonl"
    for one in (record, other):
        records.append(path, one)
    assert records.read_runs(path) == [record, other]
    assert len(path.read_text().splitlines()) == 2
    assert records.read_runs(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("kept", [1, 200, -1], ids=["one byte", "some", "all but the newline"])
def test_last_line_cut_short_is_left_out(tmp_path, record, kept):
    """Oracle: the whole lines before it. A stop while appending must not cost the other runs."""
    path = tmp_path / "records.jsonl"
    records.append(path, record)
    whole = path.read_text()
    path.write_text(whole + whole[:kept])
    assert records.read_runs(path) == [record]


def test_a_line_that_another_process_is_writing_is_not_cut_off(tmp_path, record):
    """Oracle: both records. Half of the line is there when the other one comes, and takes it for what a
    stop has left; readers leave it out, and wait for nobody."""
    path, whole = tmp_path / "records.jsonl", json.dumps(dataclasses.asdict(record)) + "\n"
    other = dataclasses.replace(record, seed=7)
    thread = threading.Thread(target=records.append, args=(path, other))
    with records.edit(path), path.open("ab", buffering=0) as file:
        file.write(whole[:100].encode())
        thread.start()
        thread.join(timeout=0.1)
        assert records.read_runs(path) == []
        file.write(whole[100:].encode())
    thread.join(timeout=60)
    assert records.read_runs(path) == [record, other]


def test_a_reader_has_whole_lines_while_others_are_replaced(tmp_path, record):
    """Oracle: the file that it opened. Half a line is left out by another file in its place; cut off, the
    reader would go on in the middle of the next one."""
    path, whole = tmp_path / "records.jsonl", json.dumps(dataclasses.asdict(record)) + "\n"
    path.write_text(whole + whole[:100])
    with path.open() as reader:
        records.append(path, record)
        assert reader.read() == whole + whole[:100]
    assert records.read_runs(path) == [record, record]


def test_a_lock_that_is_not_let_go(tmp_path, record, monkeypatch):
    """Oracle: the contract; one line that names the file and the remedy, and no record changes."""
    path = tmp_path / "records.jsonl"
    records.append(path, record)
    monkeypatch.setattr(records, "LOCK_SECONDS", 0.01)
    with records.edit(path), pytest.raises(InputError, match=r"in the hands of .*\.jsonl\.lock if"):
        records.append(path, record)
    assert records.read_runs(path) == [record]


def test_without_locks_records_are_kept_all_the_same(tmp_path, record, monkeypatch):
    """Oracle: the round trip, on a file system that has none, as filelock says it."""

    def acquire(*arguments, **options):
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    records.append(tmp_path / "records.jsonl", record)
    assert records.read_runs(tmp_path / "records.jsonl") == [record]


@pytest.mark.parametrize(
    "damaged",
    [
        *("not json", '{"recipe": "x"}', '{"curve": [{"step": 1}]}', "[1, 2]", "7", '{"curve": 3}'),
        *("\udcff\udcfe", "[" * 100_000),
    ],
    ids=lambda damaged: ascii(damaged[:24]),
)
def test_damaged_line_is_refused_with_its_number(tmp_path, record, damaged):
    """Oracle: the contract. Dropping a damaged run in silence would change a table's mean."""
    path = tmp_path / "records.jsonl"
    records.append(path, record)
    with path.open("ab") as file:
        file.write(damaged.encode(errors="surrogateescape") + b"\n")
    records.append(path, record)
    with pytest.raises(InputError, match=r"records\.jsonl, line 2 is not a run record") as caught:
        records.read_runs(path)
    assert len(str(caught.value).splitlines()) == 1


def test_strict_json(record):
    """Oracle: RFC 8259, which has no NaN. Other programs must be able to read a record, and a
    number that could not be measured is absent rather than 0 or NaN."""
    text = json.dumps(dataclasses.asdict(record), allow_nan=False)
    assert json.loads(text)["curve"][0]["metrics"]["gradient_alignment/layer_0"]


def test_what_cannot_be_measured_is_absent():
    """Oracle: the shallow control sends no error, so there is no angle to report; its curve must
    not claim one (a cosine of 0 would be read as 'orthogonal')."""
    config = small.config("shallow", alignment_examples=16, num_epochs=1)
    record = fit(config, progress=False).record
    json.dumps(dataclasses.asdict(record), allow_nan=False)
    names = record.final.metrics
    assert not [name for name in names if name.startswith("gradient_alignment")]
    assert names["error_norm/layer_0"] == 0.0


def test_environment(record):
    """Oracle: the libraries' own versions. A number without its commit cannot be reproduced."""
    found = record.environment
    assert found["jax"] == jax.__version__
    assert {"flax", "optax", "numpy", "python", "device"} <= set(found)
    assert re.fullmatch(r"([0-9a-f]{12}\+?)?", found["commit"])


def test_commit_of_the_checkout(tmp_path, monkeypatch):
    """Oracle: git itself, on a repository made here; `+` says that code differs from the commit."""
    run = records.subprocess.run

    def git(*words):
        plain = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
        done = run(
            ["git", *plain, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    module = tmp_path / "dfa_jax" / "train" / "records.py"
    monkeypatch.setattr(records, "__file__", str(module))
    assert records._commit() == ""  # outside a checkout
    module.parent.mkdir(parents=True)
    module.write_text("1\n")
    results = tmp_path / "results" / "records.jsonl"
    results.parent.mkdir()
    results.write_text("{}\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    results.write_text("{}\n{}\n")  # what the runs before this one appended
    assert records._commit() == git("rev-parse", "--short=12", "HEAD")
    module.write_text("2\n")
    assert records._commit() == git("rev-parse", "--short=12", "HEAD") + "+"


def test_no_place_on_this_machine_in_a_record(record):
    """Oracle: absence. Where data lies is no part of a run, and names people."""
    assert "data_dir" not in json.dumps(dataclasses.asdict(record))
    assert "secret" not in json.dumps(dataclasses.asdict(record))
    assert str(dfa_jax.__path__[0]) not in json.dumps(dataclasses.asdict(record))


def test_final_is_the_last_point(record):
    """Oracle: the curve. Points are in order of step, and the last is after the last step."""
    steps = [point.step for point in record.curve]
    assert steps == [4, 8, 12] == sorted(steps)
    assert record.final == record.curve[-1]
    assert record.final.epoch == 3.0
    assert record.num_steps == 12
    assert isinstance(record, RunRecord)
    assert isinstance(record.final, Evaluation)
    assert record.num_params == 64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10
    assert math.isclose(record.final.metrics["wall_seconds"], record.wall_seconds, abs_tol=5.0)
