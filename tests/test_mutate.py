"""The sabotages of `scripts/mutate.py` keep up with the code. Oracle: they name what there is."""

import pathlib
import re
import runpy
import shlex

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SABOTAGES = runpy.run_path(str(ROOT / "scripts" / "mutate.py"))["SABOTAGES"]


@pytest.mark.parametrize("name", SABOTAGES)
def test_every_sabotage_can_be_made(name):
    """Its line is there, once, and so are its tests; a refactor would leave them behind unseen."""
    file, line, instead, tests = SABOTAGES[name]
    assert (ROOT / "dfa_jax" / file).read_text().count(line) == 1, line
    assert instead != line
    folders = [ROOT / word.partition("::")[0] for word in shlex.split(tests) if "tests/" in word]
    assert all(folder.exists() for folder in folders), tests
    files = [path for folder in folders for path in [folder, *folder.rglob("*.py")]]
    text = "".join(path.read_text() for path in files if path.is_file())
    for word in re.findall(r"(?:::|-k )(\w+)", tests):
        assert re.search(rf"def test_\w*{word.removeprefix('test_')}", text), word
