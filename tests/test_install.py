"""What is installed is what is needed: the core and each extra alone, and a missing one in one line."""

import ast
import functools
import json
import re
import subprocess
import sys
import venv

import pytest

from tests import installed
from tests.examples import EXAMPLES

ROOT = installed.ROOT
TRADES = [extra for extra in EXAMPLES if extra]
OURS = {"dfa_jax", "configs", "scripts"}
FILES = [path for name in sorted(OURS) for path in sorted((ROOT / name).rglob("*.py"))]
BESIDE = {path.stem for path in (ROOT / "scripts").glob("*.py")}  # scripts import each other so
UNNEEDED = {"torch"}  # where it is there, benchmarks set PyTorch beside JAX


parsed = functools.cache(lambda path: ast.parse(path.read_text()))


class Imports(ast.NodeVisitor):
    """The other libraries that a file imports: with the file itself, and later."""

    def __init__(self, path):
        self.first, self.later, self.depth = set(), set(), 0
        self.visit(parsed(path))

    def note(self, *names):
        found = {name.partition(".")[0] for name in names}
        (self.later if self.depth else self.first).update(found - sys.stdlib_module_names)

    def visit_Import(self, node):
        self.note(*(alias.name for alias in node.names))

    def visit_ImportFrom(self, node):
        self.note(node.module)

    def visit_FunctionDef(self, node):
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    def visit_If(self, node):
        """What type checkers alone read is not imported with the file."""
        if ast.unparse(node.test) == "TYPE_CHECKING":
            self.visit_FunctionDef(node)
        else:
            self.generic_visit(node)


def test_files_import_the_core_alone():
    """Oracle: syntax trees against what pip would install. One import at the head of a file of a library that an
    extra has, and who installed the core alone can import nothing."""
    allowed = installed.modules() | OURS | BESIDE | UNNEEDED
    wrong = {path.name: found for path in FILES if (found := Imports(path).first - allowed)}
    assert not wrong


def test_every_library_is_declared():
    """Oracle: as above, with all extras. A library that only came along with another one goes with it (Pillow did
    with Matplotlib)."""
    declared = installed.modules("all") | OURS | BESIDE | UNNEEDED
    wrong = {path.name: found for path in FILES if (found := Imports(path).later - declared)}
    assert not wrong


def required():
    """Extra and module of every call of `require` that spells them out."""
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "require":
                extra, _, *names = (getattr(argument, "value", None) for argument in node.args)
                yield from ((extra, name) for name in names if isinstance(name, str))


def test_the_extra_that_is_named_has_the_module():
    """Oracle: what pip would install. Otherwise the command of the message does not help."""
    pairs = set(required()) - {("prepare", "tensorflow")}  # which tests do without
    assert {extra for extra, _ in pairs} == set(TRADES)
    assert [(extra, name) for extra, name in pairs if name not in installed.modules(extra)] == []


REFUSED = {
    "train": {
        "fit": "fit(TrainConfig(), run_dir=FOLDER / 'run', overwrite=True)",
        "linear_probe": "linear_probe(None, None, None, None)",
        "train.py": "script('train', 'quickstart', '--run-dir', 'run', '--overwrite')",
        "sweep.py": "script('sweep', 'quickstart', '--sweep-dir', 'run')",
        "sweep.py --status": "script('sweep', 'quickstart', '--sweep-dir', 'run', '--status')",
    },
    "data": {
        "digits": "ImageData('digits').load()",
        "an image set": "load_tfds('mnist', FOLDER)",
        "a stream": "ImageData('mnist', data_dir=str(FOLDER), stream=True).load()",
        "a text": "TextData('lm1b', data_dir=str(FOLDER)).load()",
        "an unknown set": "load_tfds('mnits', FOLDER)",
        "byte pairs": "learn_bpe([b'to be'], 258)",
        "packing": "TextData('stdlib').load()",
    },
    "prepare": {"data.prepare": "prepare.prepare('mnist', FOLDER)"},
    "theory": {
        "solve": "theory.solve(None, None, None)",
        "benchmark.py theory": "script('benchmark', 'theory')",
    },
    "report": {
        "a figure": "figure.draw('learning_curves', [])",
        "reproduce.py": "script('reproduce', 'quickstart', '--results-dir', 'run')",
        "reproduce.py of a study": "script('reproduce', 'align_then_memorise/phases', '--results-dir', 'run')",
    },
}  # fmt: skip

ALONE = """
import json, pathlib, runpy, sys
import jax, flax.linen, optax
plain = set(sys.modules)
import dfa_jax
added = set(sys.modules) - plain
from dfa_jax import TrainConfig, errors, fit, theory
from dfa_jax.data import ImageData, TextData, load_tfds, prepare
from dfa_jax.data.vocabulary import learn_bpe
from dfa_jax.report import figure
from dfa_jax.train import linear_probe

FOLDER = pathlib.Path.cwd()
sys.path.insert(0, str(SCRIPTS))

def script(name, *arguments):
    runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"](list(arguments))

def refusal(code):
    try:
        eval(code)
    except errors.MissingExtraError as error:
        return str(error)
    except Exception as error:
        return repr(error)
    return "was done"

found = {"added": sorted(added), "said": {}}
for extra, cases in CASES.items():
    found["said"][extra] = {name: refusal(code) for name, code in cases.items()}
    found.setdefault("trained", sorted(sys.modules))  # by the first of them
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What a process found where the core alone is installed, and the files of its folder then."""
    folder = tmp_path_factory.mktemp("core")
    for one in ("mnist/3.0.1", "lm1b/1.1.0"):
        (folder / one).mkdir(parents=True)
        (folder / one / "dataset_info.json").touch()
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text('{"rule": 0, "optimizer": 0}')
    before = files(folder)
    cache = tmp_path_factory.mktemp("cache")  # where no text has been packed
    given = f"import pathlib; SCRIPTS = pathlib.Path({str(ROOT / 'scripts')!r}); CASES = {REFUSED}"
    code = f"{given}\n{ALONE}\n{EXAMPLES['']}"
    done = installed.run(code, cwd=folder, XDG_CACHE_HOME=str(cache))
    assert not done.returncode, done.stderr
    return json.loads(done.stdout) | {"before": before, "after": files(folder)}


def files(folder):
    """All files, by path, with what is in them."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*.*")
        if path.is_file()
    }


def test_the_core_alone_trains(alone):
    """Oracle: the process ends well: a rule trains a network, and the refusals below are all that it printed."""
    assert alone["said"]


def test_a_plain_import_loads_no_more_than_flax_and_optax(alone):
    """Oracle: `sys.modules`, beside those of `import jax, flax.linen, optax`. Orbax and SciPy are there, and would
    cost functional users half a second; what an extra brings could not be loaded at all."""
    added = {name.partition(".")[0] for name in alone["added"]} - sys.stdlib_module_names
    assert added - {"jax", "numpy"} == {"dfa_jax", "jaxtyping", "wadler_lindig"}


def test_a_recipe_is_read_without_drawing(alone):
    """Oracle: `sys.modules` of scripts that have read a recipe. Matplotlib is not even there; SciPy's statistics are,
    and cost a second."""
    assert "dfa_jax.report.catalogue" in alone["trained"]
    assert "scipy.stats" not in alone["trained"]


@pytest.mark.parametrize(
    ("extra", "name"), [(extra, name) for extra in REFUSED for name in REFUSED[extra]]
)
def test_a_missing_extra_is_one_line(alone, extra, name):
    """Oracle: the message that a user needs: what is missing, what for, and the command that installs it."""
    said = alone["said"][extra][name]
    assert re.fullmatch(
        rf"[^\n]+ needs the module '\w+', which is not installed: pip install 'dfa_jax\[{extra}\]'"
        rf" \(in a clone: pip install -e '.\[{extra}\]'\)",
        said,
    )


def test_a_missing_extra_is_told_before_any_file_is_touched(alone):
    """Oracle: bits of the folder. A run that cannot begin must not have removed the one before it."""
    assert alone["after"] == alone["before"]


@pytest.mark.slow
@pytest.mark.parametrize("extra", TRADES)
def test_each_extra_alone_does_its_trade(extra):
    """Oracle: the process ends well; modules of all other distributions are hidden from it."""
    done = installed.run(EXAMPLES[extra], extra)
    assert not done.returncode, done.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("extra", EXAMPLES)
def test_each_extra_installs_and_does_its_trade(extra, tmp_path):
    """Oracle: pip, in a fresh environment with nothing else in it."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    source = f"{ROOT}[{extra}]" if extra else str(ROOT)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--editable", source], check=True)
    done = subprocess.run([python, "-c", EXAMPLES[extra]], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
