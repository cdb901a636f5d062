"""One of the processes of a run: `python -m tests.train.member FOLDER DEVICES [CHANGES as JSON]`.

Prints the error in one line and exits with 2, as the scripts do.
"""

import json
import pathlib
import sys

import jax

from dfa_jax.train import fit, hosts, interrupt
from dfa_jax.train.cli import exit_on_bad_input
from tests.train import small


def main(folder: str, devices: str, changes: str = "{}") -> None:
    """Trains, or goes on, in the folder that all share."""
    jax.config.update("jax_num_cpu_devices", int(devices))
    hosts.join()
    config = small.config(**json.loads(changes))
    fit(config, run_dir=pathlib.Path(folder), resume=True, progress=False)


if __name__ == "__main__":
    with exit_on_bad_input("member"), interrupt.listen("member", "go on"):
        main(*sys.argv[1:])
