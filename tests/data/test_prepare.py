"""The preparing command; the download itself is TFDS's and is replaced here."""

import subprocess
import sys
import types

import pytest

from dfa_jax.data import prepare


def one_line(text):
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnits"], "did you mean 'mnist'"),
        (["wiki40/en"], "did you mean 'wiki40b'"),  # of a folder that TFDS may leave out
        ([], "required: name"),
        (["mnist", "--datadir", "x"], "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    """Oracle: exit code and the message."""
    assert prepare.main(arguments) == 2
    assert message in one_line(capsys.readouterr().err)


def test_missing_tensorflow_says_what_to_install(capsys, monkeypatch, tmp_path):
    """Absence: TensorFlow cannot be imported."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert prepare.main(["mnist", "--data-dir", str(tmp_path)]) == 2
    assert "pip install 'dfa_jax[prepare]'" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("failure", [None, OSError("no route\nto host")])
def test_prepares_array_record_in_the_folder(capsys, monkeypatch, tmp_path, failure):
    """Oracle: what a stand-in for TFDS's builder is asked for; its failure is one line."""
    import tensorflow_datasets as tfds

    asked = {}

    def download_and_prepare(**options):
        asked.update(options)
        if failure:
            raise failure

    def builder(name, data_dir):
        asked.update(name=name, data_dir=data_dir)
        return types.SimpleNamespace(
            download_and_prepare=download_and_prepare, data_dir=f"{data_dir}/mnist/3.0.1"
        )

    monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))
    monkeypatch.setattr(tfds, "builder", builder)
    code = prepare.main(["mnist", "--data-dir", str(tmp_path)])
    assert asked == {"name": "mnist", "data_dir": tmp_path, "file_format": "array_record"}
    captured = capsys.readouterr()
    if failure:
        assert code == 2
        assert "no route to host" in one_line(captured.err)
    else:
        assert code == 0
        assert captured.out == f"prepared: {tmp_path}/mnist/3.0.1\n"


@pytest.mark.slow
def test_runs_as_a_module():
    """Oracle: exit code 2 and a clean standard error in a process of its own."""
    command = [sys.executable, "-m", "dfa_jax.data.prepare"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: python -m dfa_jax.data.prepare" in one_line(done.stderr)
