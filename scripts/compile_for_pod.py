"""Compiles a recipe's train step for a TPU slice that you need not own.

`python scripts/compile_for_pod.py RECIPE --topology v5e:16x16` prints, for each variant, memory a
device and whether it fits, FLOPs, and operations between devices. Options of `train.py` change all
variants: `--rule.backward layer_parallel --layer-axis 4`. It needs `pip install 'jax[tpu]'` and
runs on a CPU.
"""

import os
import pathlib
import sys

import jax

from dfa_jax.errors import InputError, select
from dfa_jax.report import catalogue, pod, pod_table
from dfa_jax.train import records
from dfa_jax.train.cli import Parser, exit_on_bad_input, parse_config


def main(arguments: list[str]) -> None:
    """One report a variant."""
    options, changes = parser().parse_known_args(arguments)
    jax.config.update("jax_platforms", "cpu")  # JAX has read its environment by now
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # libtpu looks for it
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is taken, others may compile
    configs = catalogue.load_runs(options.recipe).variants
    misfits = []
    for name in select("variant", options.only, configs):
        config = parse_config(configs[name], changes)
        try:
            report = pod.compile_for(config, options.topology)
        except pod.DoesNotFitError as error:
            print(f"{name} {' '.join(changes)}\n{error}\n", flush=True)
            misfits.append(name)
            continue
        print(f"{name} {' '.join(changes)}\n{report}\n", flush=True)
        if options.output:
            write(options.output, options.recipe, name, " ".join(changes), report)
        misfits += [] if report.fits else [name]
    if misfits:
        raise InputError(
            f"do not fit {options.topology}: {', '.join(misfits)}; lower examples_at_once, set"
            " fsdp, raise model_axis, or take a larger slice"
        )


def write(
    folder: pathlib.Path, recipe: str, variant: str, changes: str, report: pod.PodReport
) -> None:
    """The report among those of the folder, and the table of them all."""
    one = pod_table.Compiled(
        catalogue.plain(recipe), variant, changes, report, records.environment()
    )
    found = pod_table.keep(folder / "compiled.jsonl", one)
    (folder / "compiled.md").write_text(pod_table.markdown(found))


def parser() -> Parser:
    options = Parser(prog="compile_for_pod.py", description=__doc__)
    options.add_argument("recipe", metavar="RECIPE", help="a file under configs/")
    options.add_argument("--topology", default="v5e:16x16", help="chip and shape of the slice")
    options.add_argument("--only", default="*", metavar="PATTERN", help="these variants")
    options.add_argument("--output", type=pathlib.Path, help="folder for compiled.jsonl and .md")
    return options


if __name__ == "__main__":
    with exit_on_bad_input("compile_for_pod.py"):
        main(sys.argv[1:])
