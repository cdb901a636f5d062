"""The documentation tells the truth. Oracle: it runs, and it names what there is."""

import importlib
import inspect
import pathlib
import pydoc
import re
import shlex
import sys
import types

import pytest

import dfa_jax
from dfa_jax.report import catalogue
from dfa_jax.rules import RULES
from dfa_jax.train import TrainConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = ["autodiff", "data", "models", "rules", "scaling", "theory", "train"]
CODE = re.compile(r"^```python\n(.*?)^```", flags=re.M | re.S)


def documented() -> set[str]:
    """Identifiers that the pages of the API show."""
    pages = (ROOT / "docs" / "api").glob("*.md")
    return {name for page in pages for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[] if page.stem == "README" else pytest.mark.slow)
        for page in PAGES
        if CODE.search(page.read_text())
    ],
)
def test_code_on_a_page_runs(page, monkeypatch, tmp_path):
    """All Python blocks of a page as one program; a failure shows the page's own line."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look for it
    text = page.read_text()
    for block in CODE.finditer(text):
        lines_before = text[: block.start(1)].count("\n")
        exec(compile("\n" * lines_before + block[1], str(page), "exec"), vars(module))


SCRIPT = re.compile(r"python scripts/(train|sweep|compile_for_pod|reproduce)\.py ([^\n]*)")
COMMANDS = sorted(
    {
        (script, re.split(r" [>&|]", options)[0])
        for page in PAGES
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), flags=re.M | re.S)
        for script, options in SCRIPT.findall(block.replace("\\\n", " "))
    }
)


@pytest.mark.parametrize(("script", "options"), COMMANDS)
def test_a_command_on_a_page_is_understood(script, options, monkeypatch):
    """The script's own reading of its command line: every recipe and option there is."""
    words = shlex.split(options, comments=True)
    monkeypatch.syspath_prepend(ROOT)
    module = importlib.import_module(f"scripts.{script}")
    if script != "train":
        recipe = vars(module.parser().parse(words)).get("recipe")
        assert recipe in (None, *catalogue.names())
        return
    seen = []
    for name in ("prepare_process", "fit"):
        monkeypatch.setattr(module, name, lambda *config, **options: seen.extend(config))
    for name, stub in {"join": lambda: None, "is_first": lambda: False}.items():
        monkeypatch.setattr(module.hosts, name, stub)
    module.main(words)
    assert isinstance(*seen, TrainConfig)


def test_the_page_of_pods_has_its_commands():
    """Not vacuous: the commands above are found."""
    assert {script for script, _ in COMMANDS} == {"train", "sweep", "compile_for_pod", "reproduce"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_reexported_name_is_documented(package):
    exported = vars(importlib.import_module(f"dfa_jax.{package}")).items()
    names = {
        f"dfa_jax.{package}.{name}"
        for name, value in exported
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert names, f"dfa_jax.{package} exports nothing"
    assert not names - documented()


@pytest.mark.parametrize("name", dfa_jax.__all__)
def test_every_top_level_name_is_documented(name):
    places = [place for place in documented() if place.endswith(f".{name}")]
    assert any(pydoc.locate(place) is getattr(dfa_jax, name) for place in places)
    assert f"`{name}`" in (ROOT / "docs" / "api" / "index.md").read_text()


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_weighed_on_the_page_of_choice(name):
    assert f"`{name}`" in (ROOT / "docs" / "choosing-a-rule.md").read_text()


def test_every_recipe_is_among_the_results():
    results = (ROOT / "results" / "README.md").read_text()
    files = (ROOT / "configs").rglob("*.py")
    names = [file.relative_to(ROOT / "configs").with_suffix("").as_posix() for file in files]
    assert names
    assert not [name for name in names if f"`{name}`" not in results]


@pytest.mark.parametrize("name", ["README.md", "results/README.md"])
def test_links_of_a_readme_lead_somewhere(name):
    page = ROOT / name
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())
    assert links
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_readme_is_short():
    """Nine hundred words, code and addresses included: a front page that is read to its end."""
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_the_readme_gives_the_two_commands():
    """The first one trains: into a folder that no clone has, and git leaves alone."""
    readme = (ROOT / "README.md").read_text()
    command = "python scripts/reproduce.py quickstart --results-dir mine"
    assert f"\npip install -e '.[all]' && {command}\n" in readme
    assert "\npip install -e '.[dev]' && pytest\n" in readme
    assert "/mine/" in (ROOT / ".gitignore").read_text().splitlines()
