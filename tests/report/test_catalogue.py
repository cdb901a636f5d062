"""Finding and loading recipes, and what is refused."""

import dataclasses

import pytest

from dfa_jax.errors import InputError
from dfa_jax.report import catalogue


def test_unknown_recipe_names_the_nearest():
    """Oracle: the message that a user needs; a misspelt name finds its neighbour."""
    with pytest.raises(InputError, match="unknown recipe 'quikstart'; did you mean 'quickstart'"):
        catalogue.load("quikstart")


@pytest.mark.parametrize("spelling", ["quickstart", "configs/quickstart.py", "quickstart.py"])
def test_name_as_a_shell_completes_it(spelling):
    """Oracle: exact equivalence with the plain name."""
    assert catalogue.load(spelling).name == "quickstart"
    assert catalogue.load_config(spelling) == catalogue.load_config("quickstart")


@pytest.mark.parametrize("load", [catalogue.load, catalogue.load_config])
def test_file_without_recipe_is_refused(tmp_path, monkeypatch, load):
    """Oracle: the message names the file and what it lacks."""
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "empty.py").write_text("RECIPE = CONFIG = 3\n")
    monkeypatch.setattr(catalogue, "CONFIGS", tmp_path)
    assert catalogue.names() == ["paper/empty"]
    with pytest.raises(InputError, match=r"configs/paper/empty.py defines no (RECIPE|CONFIG)"):
        load("paper/empty")


def test_expected_number_of_an_unknown_variant_is_refused(recipe):
    """Oracle: the message that a user needs."""
    number = dataclasses.replace(recipe.expected[0], variant="tanh/backpropp")
    with pytest.raises(InputError, match="did you mean 'tanh/backprop'"):
        dataclasses.replace(recipe, expected=(number,))


@pytest.mark.parametrize("change", [{"variants": {}}, {"seeds": ()}, {"seeds": (1, 1)}])
def test_nothing_to_run_is_refused(recipe, change):
    """Oracle: invariant; a recipe has variants, and seeds that differ."""
    with pytest.raises(InputError, match="expected at least one variant"):
        dataclasses.replace(recipe, **change)


def test_seeds_can_be_counted(recipe):
    """Oracle: definition."""
    assert recipe.with_seeds(2).seeds == (0, 1)
    with pytest.raises(InputError, match="0 seeds; expected at least 1"):
        recipe.with_seeds(0)
