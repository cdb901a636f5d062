"""Compiles a recipe's train step for a TPU slice that you need not own.

`python scripts/compile_for_pod.py RECIPE --topology v5e:16x16` prints, for each variant, memory a
device and whether it fits, FLOPs, and operations between devices. It needs `pip install 'jax[tpu]'`
and runs on a CPU.
"""

import os
import sys

import jax

from dfa_jax.errors import InputError, select
from dfa_jax.report import catalogue, pod
from dfa_jax.train.cli import Parser, exit_on_bad_input


def main(arguments: list[str]) -> None:
    """One report a variant."""
    options = parser().parse(arguments)
    jax.config.update("jax_platforms", "cpu")  # JAX has read its environment by now
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # libtpu looks for it
    configs = catalogue.load_runs(options.recipe).variants
    misfits = []
    for name in select("variant", options.only, configs):
        report = pod.compile_for(configs[name], options.topology)
        print(f"{name}\n{report}\n", flush=True)
        misfits += [] if report.fits else [name]
    if misfits:
        raise InputError(
            f"do not fit {options.topology}: {', '.join(misfits)}; set fsdp, or raise model_axis"
        )


def parser() -> Parser:
    options = Parser(prog="compile_for_pod.py", description=__doc__)
    options.add_argument("recipe", metavar="RECIPE", help="a file under configs/")
    options.add_argument("--topology", default="v5e:16x16", help="chip and shape of the slice")
    options.add_argument("--only", default="*", metavar="PATTERN", help="these variants")
    return options


if __name__ == "__main__":
    with exit_on_bad_input("compile_for_pod.py"):
        main(sys.argv[1:])
