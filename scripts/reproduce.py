"""Makes a recipe's table, figure and page: `python scripts/reproduce.py RECIPE`, or `--list`."""

import pathlib
import sys

from dfa_jax.errors import InputError
from dfa_jax.report import catalogue, publish, readme
from dfa_jax.train import interrupt
from dfa_jax.train.cli import Parser, exit_on_bad_input
from dfa_jax.train.process import prepare_process

AGAIN = "the same command goes on"  # after a stop


def main(arguments: list[str]) -> None:
    """Runs what is missing, then writes the report."""
    options = parser().parse(arguments)
    if options.list:
        print(publish.listing(options.results_dir))
        return
    if options.readme:
        readme.fill(options.readme, options.results_dir)
        return
    if options.recipe is None:
        raise InputError("which RECIPE? --list shows them all, --help the options")
    chosen = catalogue.load(options.recipe)
    if options.seeds is not None:
        chosen = chosen.with_seeds(options.seeds)
    if not options.report_only:
        prepare_process()
        publish.run(
            chosen.only(options.only),
            options.results_dir,
            data_dir=options.data_dir,
            overwrite=options.overwrite,
        )
    print(publish.publish(chosen, options.results_dir))


def parser() -> Parser:
    options = Parser(prog="reproduce.py", description=__doc__)
    options.add_argument("recipe", nargs="?", metavar="RECIPE", help="a file under configs/")
    options.add_argument("--list", action="store_true", help="all recipes, and what is in results")
    options.add_argument(
        "--readme",
        type=pathlib.Path,
        nargs="+",
        metavar="FILE",
        help="write all results into these",
    )
    options.add_argument("--data-dir", type=pathlib.Path, help="folder of prepared TFDS data sets")
    options.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N - 1, not its own")
    options.add_argument(
        "--only", default="*", metavar="PATTERN", help="run these variants or cases; report all"
    )
    options.add_argument("--results-dir", type=pathlib.Path, default=pathlib.Path("results"))
    options.add_argument(
        "--overwrite", action="store_true", help="replace runs made with another configuration"
    )
    options.add_argument(
        "--report-only", action="store_true", help="report what is in; run nothing"
    )
    return options


if __name__ == "__main__":
    with exit_on_bad_input("reproduce.py"), interrupt.listen("reproduce.py", AGAIN):
        main(sys.argv[1:])
