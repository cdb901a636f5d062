"""Made-up records, so that these tests train nothing."""

import pytest


@pytest.fixture
def make_record():
    """`make_record(recipe, variant, seed, errors)`: a record whose curve has these test errors, %."""
    from dfa_jax.train.config import rule_name, to_dict
    from dfa_jax.train.records import Evaluation, RunRecord

    def evaluation(step, error, alignment):
        sites = {f"gradient_alignment/{site}": value for site, value in alignment.items()}
        return Evaluation(
            step=step,
            epoch=float(step),
            train_loss=0.5,
            train_accuracy=1 - error / 200,
            test_loss=0.7,
            test_accuracy=1 - error / 100,
            metrics=sites | {"wall_seconds": float(step)},
        )

    def make(recipe, variant, seed, errors, alignment=()):
        config = recipe.variants[variant]
        return RunRecord(
            recipe=recipe.name,
            variant=variant,
            rule=rule_name(config.rule),
            seed=seed,
            num_params=1234,
            num_steps=len(errors),
            wall_seconds=2.0 + seed,
            config={**to_dict(config), "seed": seed},
            environment={"commit": "0123456789ab", "jax": "0.0"},
            curve=tuple(
                evaluation(step, error, dict(alignment)) for step, error in enumerate(errors, start=1)
            ),
        )

    return make


@pytest.fixture
def recipe():
    """Two groups of three rules over three seeds, with one published number."""
    from dfa_jax.models import MLP
    from dfa_jax.report.recipe import Expected, Recipe
    from dfa_jax.rules import RULES
    from dfa_jax.train.config import TrainConfig

    rules = ("backprop", "direct_feedback_alignment", "shallow")
    return Recipe(
        title="A <made-up> recipe",
        paper="Nobody & Co. (2020)",
        minutes=1,
        variants={
            f"{activation}/{rule}": TrainConfig(model=MLP(activation=activation), rule=RULES[rule]())
            for activation in ("tanh", "relu")
            for rule in rules
        },
        seeds=(0, 1, 2),
        expected=(
            Expected("tanh/backprop", "test error", 2.0, 0.1, "table 1", "memory, unverified"),
        ),
        name="made_up",
        header="A <made-up> recipe.\n\nPaper: x\nCommand: y\nTime: z\nExpect: w\n    more\n\nBody.",
    )


@pytest.fixture
def records(recipe, make_record):
    """All runs of `recipe`; test errors differ by variant, seed and epoch."""
    base = {"backprop": 2.0, "direct_feedback_alignment": 3.0, "shallow": 8.0}
    found = []
    for seed in recipe.seeds:
        for place, variant in enumerate(recipe.variants):
            final = base[variant.split("/")[1]] + 0.1 * place + 0.07 * seed * (place + 1)
            alignment = {"layer_0": 0.2 + 0.01 * seed, "layer_1": 0.5} if "direct" in variant else {}
            found.append(make_record(recipe, variant, seed, (20.0, final), alignment))
    return found
