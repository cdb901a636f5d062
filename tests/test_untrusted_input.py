"""Nothing that is read can run: no pickle, no `eval`, in all of the package and the scripts.

Oracle: proof of absence, in the syntax trees. Recipes are code, and imported as such. What hostile
checkpoints do is in `train/test_resume.py`; hostile records are below.
"""

import ast
import json
import pathlib
import pickle

import pytest

from dfa_jax.errors import InputError
from dfa_jax.train import records
from dfa_jax.train.directory import RunDirectory
from tests.train.test_resume import Bomb

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(path for folder in ("dfa_jax", "scripts") for path in (ROOT / folder).rglob("*.py"))
MODULES = {
    *("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "jsonpickle"),
    *("marshal", "shelve", "yaml"),
}
CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("runpy.run_path", "runpy.run_module"),
}
ALLOWED = {"dfa_jax/report/catalogue.py": ["runpy.run_path"]}  # recipes


def dangers(text: str) -> list[str]:
    """What a source text uses that can run what it reads."""
    return [name for node in ast.walk(ast.parse(text)) for name in found(node)]


def found(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
    if isinstance(node, ast.ImportFrom):
        full = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name for name in full if name.split(".")[0] in MODULES or name in CALLS]
    if not isinstance(node, ast.Call):
        return []
    name, given = ast.unparse(node.func), {one.arg: one.value for one in node.keywords}

    def is_false(option):
        value = given.get(option)
        return isinstance(value, ast.Constant) and value.value is False

    if name in CALLS:
        return [name]
    if name == "importlib.import_module" and not isinstance(node.args[0], ast.Constant):
        return [name]
    if name in ("np.load", "numpy.load", "jnp.load", "torch.load") and not is_false("allow_pickle"):
        return [name]
    return [
        option for option in ("allow_pickle", "shell") if option in given and not is_false(option)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_can_run_what_it_reads(path):
    """Proof of absence."""
    name = path.relative_to(ROOT).as_posix()
    assert dangers(path.read_text()) == ALLOWED.get(name, [])


@pytest.mark.parametrize(
    "text",
    [
        *("import pickle", "import pickle as p", "from joblib import load", "import yaml"),
        *("eval(x)", "exec(x)", "__import__(x)", "compile(x, '', 'exec')"),
        *("np.load(f)", "np.load(f, allow_pickle=True)", "read(f, allow_pickle=flag)"),
        *("torch.load(f)", "importlib.import_module(x)", "runpy.run_path(x)"),
        *("os.system(x)", "from os import system", "subprocess.run(x, shell=True)"),
    ],
)
def test_each_danger_is_seen(text):
    """By hand: the test above would see it."""
    assert len(dangers(text)) >= 1


HOSTILE = {
    "a pickle": lambda marker: pickle.dumps(Bomb(marker), 0).replace(b"\n", b"\\n"),
    "a binary pickle": lambda marker: pickle.dumps(Bomb(marker)).replace(b"\n", b" "),
    "an expression": lambda marker: f"open({str(marker)!r}, 'w')".encode(),
    "a string that is one": lambda marker: json.dumps(
        {"curve": f"__import__('pathlib').Path({str(marker)!r}).touch()"}
    ).encode(),
    "an object of jsonpickle": lambda marker: json.dumps(
        {"py/reduce": [{"py/function": "builtins.open"}, {"py/tuple": [str(marker), "w"]}]}
    ).encode(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_record_runs_nothing(tmp_path, name):
    """Proof of absence: it is refused by its line, wherever a record is read, and makes no file."""
    marker = tmp_path / "marker"
    line = HOSTILE[name](marker) + b"\n"
    for file in ("records.jsonl", "record.json", "curve.jsonl"):
        (tmp_path / file).write_bytes(line)
    with pytest.raises(InputError, match="line 1 is not a run record"):
        records.read_runs(tmp_path / "records.jsonl")
    with pytest.raises(InputError, match=r"record\.json is damaged"):
        RunDirectory(tmp_path).record()
    with pytest.raises(InputError, match="line 1 is not an evaluation"):
        RunDirectory(tmp_path).curve_until(0)
    assert not marker.exists()
