"""Trains one network: `python scripts/train.py RECIPE [--rule NAME] [--optimizer.learning-rate 0.01] ...`"""

import pathlib
import sys

from dfa_jax.report import recipe
from dfa_jax.train import fit
from dfa_jax.train.cli import Parser, exit_on_bad_input, parse_config
from dfa_jax.train.process import prepare_process


def main(arguments: list[str]) -> None:
    """Trains the recipe's configuration with the command line's changes, in a run directory."""
    run = Parser(prog="train.py RECIPE", add_help=False)
    run.add_argument("--run-dir", type=pathlib.Path, default=None)
    run.add_argument("--resume", action="store_true")
    run.add_argument("--overwrite", action="store_true")
