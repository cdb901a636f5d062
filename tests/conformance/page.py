"""The page of the docs, from the tables of the tests: `python -m tests.conformance.page` writes it."""

import pathlib

from dfa_jax.errors import InputError
from dfa_jax.rules import RULES
from tests.conformance import zoo
from tests.conformance.oracles import FORMS
from tests.conformance.refusals import REFUSALS

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "conformance.md"

NEVER = {("direct_random_target_projection", "squeezed head"): "integer labels"}
"""Cells that are refused, by rule and model, with a word of the refusal."""

HEAD = """# What works with what

Models in the shapes that other people's have, each under every form of a loss and under every rule. A cell is *right* if its test
passes: the loss is the scalar that was written, the model's state moves as the module itself moves it, the readout's gradient is
`jax.grad`'s, and the errors (of weight-perturbed forward gradients, the gradients) are those of the rule's definition, all written
out with `module.apply`, `jax.grad` and NumPy in `tests/conformance`. The rest is a refusal in one line, before any step.

The page is made of the tables of the tests (`python -m tests.conformance.page`), which run in three tiers
(`pytest tests/conformance -m ""` runs all).
"""

LIMITS = """## What a right cell does not say

- A weight that is made of several parameters is one weight: chain rules swap the product in which data meets it, and among themselves
  its parts learn by their true derivatives. So do `W + A @ B`, a learned query that goes through a map, and a whole network whose
  inputs are constants of the module.
- A product of two activations keeps its true derivative: attention, or inputs that multiply a kernel (`(adjacency @ W)`) which then
  multiplies activations.
- A forward gradient of a loss whose values have no axis of examples (a scalar), or that couples examples, is right and noisier: all
  examples share one slope.
- `jax.grad` of a function of estimated gradients is the derivative of a loss under `backprop` alone.
- Parameters of the root module itself are guessed by `weight_forward_gradient` also where they lie above the last site.
"""


def table() -> str:
    """Models by rules: how many forms of the loss are right."""
    names = list(RULES)
    lines = ["| model | " + " | ".join(f"`{name}`" for name in names) + " |"]
    lines.append("| --- |" + " --- |" * len(names))
    for kind in zoo.KINDS:
        cells = [
            "refused" if (name, kind) in NEVER else f"{len(FORMS)} of {len(FORMS)}"
            for name in names
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def said(call) -> str:
    """The refusal's one line."""
    try:
        call()
    except InputError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def page() -> str:
    """All of it."""
    number = len(zoo.KINDS) * len(RULES) * len(FORMS)
    refused = len(NEVER) * len(FORMS)
    forms = "; ".join(FORMS)
    refusals = "\n".join(f"| {what} | {said(call)} |" for what, (_, call) in REFUSALS.items())
    return f"""{HEAD}
## {number - refused} cells are right, {refused} are refused

The {len(FORMS)} forms of a loss: {forms}.

{table()}

## All that may be refused

| what | what is said |
| --- | --- |
{refusals}

{LIMITS}"""


if __name__ == "__main__":
    PAGE.write_text(page())
