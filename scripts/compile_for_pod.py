"""Compiles a recipe's train step for a TPU slice that you need not own.

`python scripts/compile_for_pod.py RECIPE --topology v5e:16x16` prints, for each variant, memory a
device and whether it fits, FLOPs, and operations between devices. It needs `pip install 'jax[tpu]'`
and runs on a CPU.
"""

import os
import sys

from dfa_jax.errors import InputError, select
from dfa_jax.report import catalogue, pod
from dfa_jax.report.recipe import Recipe
from dfa_jax.report.run_study import RunStudy
from dfa_jax.train.cli import Parser, exit_on_bad_input
from dfa_jax.train.config import TrainConfig


def main(arguments: list[str]) -> None:
    """One report a variant."""
    options = parser().parse(arguments)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # libtpu looks for it
    configs = variants(options.recipe)
    misfits = []
    for name in select("variant", options.only, configs):
        report = pod.compile_for(configs[name], options.topology)
        print(f"{name}\n{report}\n", flush=True)
        misfits += [] if report.fits else [name]
    if misfits:
        raise InputError(
            f"do not fit {options.topology}: {', '.join(misfits)}; set fsdp, or raise model_axis"
        )


def variants(name: str) -> dict[str, TrainConfig]:
    """The runs of a recipe by name."""
    found = catalogue.load(name)
    recipe = found.recipe if isinstance(found, RunStudy) else found
    if not isinstance(recipe, Recipe):
        raise InputError(f"'{name}' has no training runs to compile")
    return dict(recipe.variants)


def parser() -> Parser:
    options = Parser(prog="compile_for_pod.py", description=__doc__)
    options.add_argument("recipe", metavar="RECIPE", help="a file under configs/")
    options.add_argument("--topology", default="v5e:16x16", help="chip and shape of the slice")
    options.add_argument("--only", default="*", metavar="PATTERN", help="these variants")
    return options


if __name__ == "__main__":
    with exit_on_bad_input("compile_for_pod.py"):
        main(sys.argv[1:])
