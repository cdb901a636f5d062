"""Python as if the core and some extras alone were installed: what other distributions bring is hidden.

`hide` runs in a process of its own, so nothing but the standard library may be imported here first.
"""

import functools
import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def hide(modules):
    """From now on no import finds these top-level modules."""
    sys.meta_path[:] = [_Finders(tuple(sys.meta_path), frozenset(modules))]


class _Finders:
    """All finders, behind a filter."""

    def __init__(self, finders, hidden):
        self.finders, self.hidden = finders, hidden

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.hidden:
            found = (finder.find_spec(name, path, target) for finder in self.finders)
            return next(filter(None, found), None)
        return None

    def find_distributions(self, *context):
        """Versions are on record in results."""
        for finder in self.finders:
            if hasattr(finder, "find_distributions"):
                yield from finder.find_distributions(*context)


def run(code, *extras, cwd=ROOT, **environment):
    """Runs code where the core and these extras alone are installed."""
    prelude = f"from tests.installed import hide; hide({sorted(others(*extras))})\n"
    return subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", prelude + code],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def others(*extras):
    """The top-level modules that neither the core nor these extras bring."""
    ours = closure(*extras) | {"dfa-jax"}
    return {name for name, owners in _owners().items() if not owners & ours}


def modules(*extras):
    """The top-level modules that the core and these extras bring."""
    return {name for name, owners in _owners().items() if owners & closure(*extras)}


@functools.cache
def _owners():
    from packaging.utils import canonicalize_name

    found = importlib.metadata.packages_distributions()
    return {name: {canonicalize_name(owner) for owner in owners} for name, owners in found.items()}


@functools.cache
def closure(*extras):
    """The distributions that pip installs with these extras, by `pyproject.toml` and metadata."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    todo, seen = [("dfa-jax", extra) for extra in ("", *extras)], set()
    while todo:
        name, extra = todo.pop()
        if (name, extra) not in seen:
            seen.add((name, extra))
            for wanted in map(Requirement, _requirements(name, extra)):
                if not wanted.marker or wanted.marker.evaluate({"extra": extra}):
                    wants = canonicalize_name(wanted.name)
                    todo += [(wants, more) for more in ("", *wanted.extras)]
    return {name for name, _ in seen}


def _requirements(name, extra):
    if name == "dfa-jax":  # the metadata of an editable install may be of another day
        return EXTRAS[extra] if extra else PROJECT["dependencies"]
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:  # for another platform, or not wanted in tests
        return []
