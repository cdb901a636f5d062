"""Every study of training runs is run shrunk from first run to page; those for pods are traced."""

import pytest

from dfa_jax.errors import InputError
from dfa_jax.report import publish
from dfa_jax.report.run_study import RunStudy
from dfa_jax.train import loop
from dfa_jax.train import records as files
from tests.recipes.shrunk import LOADED, check_page, of_kind, plain, trace, whole

PODS = [name for name in of_kind(RunStudy) if "/pod/" in name]


@pytest.fixture(autouse=True)
def train_alike_once(trained, monkeypatch):
    """`fit`, for configurations that differ in more than a rate, a warm-up or a seed.

    What is left of a ladder of sizes once it is shrunk is one run an arm; its records still say
    which size they are of.
    """
    fit = loop.fit

    def remembering(config, **options):
        kind = plain(config)
        if kind not in trained:
            trained[kind] = fit(config, **options)
        return trained[kind]

    monkeypatch.setattr(loop, "fit", remembering)


@pytest.mark.recipe
@pytest.mark.slow
@pytest.mark.parametrize("name", whole([name for name in of_kind(RunStudy) if name not in PODS]))
def test_shrunk_study_runs_to_its_page(name, results):
    """Oracle: invariant; every run is on record, every finding in the table and on the page."""
    check_page(name, results)
    check_parts(name, results)


def check_parts(name, results):
    """Whatever runs are missing, the page shows the others and says so; of none there is one line."""
    small = LOADED[name].shrink()
    held, folder = publish.held_runs(small, results), results / "parts"
    with pytest.raises(InputError, match=f"no runs of '{name}' in .*{small.source}; leave out"):
        publish.publish(small, folder)
    path = folder / small.source / publish.RECORDS
    for part in (held[:1], held[:-1]) if len(held) > 1 else ():
        with files.edit(path) as file:
            file.replace(part)
        assert "Not all of it is in yet." in publish.publish(small, folder)
        assert f"{len(part)} of {len(held)} runs" in (folder / name / "index.html").read_text()
    path.unlink(missing_ok=True)


@pytest.mark.recipe
@pytest.mark.slow
@pytest.mark.parametrize("name", whole(PODS))
def test_shrunk_pod_recipe_compiles_and_steps(name):
    """Oracle: invariant; every run is traced, and one with all that a pod needs (scan, remat, half
    precision, a stream, a split width) is trained. How a ladder's records are drawn and judged is
    tested with the frontier's, whose functions these are."""
    variants = LOADED[name].shrink().runs.variants
    for config in variants.values():
        trace(plain(config))
    last = [config for label, config in variants.items() if label.endswith("/DFA")][-1]
    assert loop.fit(last, progress=False).record.curve
