"""Trains one network: `python scripts/train.py RECIPE [--rule NAME] [--seed 1] ...`; see --help."""

import pathlib
import sys

from dfa_jax.errors import InputError
from dfa_jax.report import catalogue
from dfa_jax.train import TrainConfig, fit, hosts, interrupt
from dfa_jax.train.cli import Parser, exit_on_bad_input, parse_config
from dfa_jax.train.process import prepare_process

USAGE = "python scripts/train.py RECIPE [options]"

AGAIN = "go on with --resume"  # after a stop


def main(arguments: list[str]) -> None:
    """Trains the recipe's configuration, with the command line's changes, in a run directory."""
    parser = Parser(prog=USAGE, add_help=False)
    parser.add_argument("recipe", nargs="?", help="a file under configs/, as quickstart")
    parser.add_argument("--run-dir", type=pathlib.Path, help="where the run is kept [runs/RECIPE]")
    parser.add_argument("--resume", action="store_true", help="go on with the run that is there")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the run that is there, once the new one runs",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    run, options = parser.parse_known_args(arguments)
    name: str = run.recipe or ""
    if not name and not {"-h", "--help"} & set(options):
        known = ", ".join(catalogue.names())
        raise InputError(f"which RECIPE? Known: {known}; --help shows the options")
    start = catalogue.load_config(name) if name else TrainConfig()
    config = parse_config(start, options, parents=[parser])
    run_dir = run.run_dir or pathlib.Path("runs") / catalogue.plain(name)
    prepare_process()
    hosts.join()
    result = fit(
        config,
        run_dir=run_dir,
        resume=run.resume,
        overwrite=run.overwrite,
        progress=not run.quiet,
    )
    if not hosts.is_first():
        return
    final = result.record.final
    found = f"test loss {final.test_loss:.4f}"
    if final.test_accuracy is not None:
        error = 100 * (1 - final.test_accuracy)
        found = f"test error {error:.2f} %, loss {final.test_loss:.4f}"
    print(f"{found}; {run_dir}")


if __name__ == "__main__":
    with exit_on_bad_input("train.py"), interrupt.listen("train.py", AGAIN):
        main(sys.argv[1:])
