"""Shares a recipe's runs out: `python scripts/sweep.py RECIPE`, in as many processes as you like.

All processes, on one machine or on several, meet in one folder. Each takes the next job that nobody
works on, and goes on from its last checkpoint if somebody began it. When no job is left, records
are written where `reproduce.py RECIPE --report-only` finds them; jobs that are on record there are
not done again. `--gather` writes the records of what is done so far, `--status` shows it.

Hosts of one slice, or processes that meet by host:port, are one worker: see docs/pods.md.
"""

import pathlib
import sys

from dfa_jax.report import catalogue, gathering, progress, sweep
from dfa_jax.train import hosts, interrupt
from dfa_jax.train.cli import Parser, exit_on_bad_input
from dfa_jax.train.process import prepare_process

AGAIN = "the same command goes on"  # after a stop


def main(arguments: list[str]) -> None:
    """Works until no job is left and gathers what is done, or shows what there is to do."""
    options = parser().parse(arguments)
    recipe = catalogue.load_runs(options.recipe)
    folder = options.sweep_dir or pathlib.Path("runs") / "sweeps" / recipe.name
    if options.dry_run or options.status:
        print(progress.planned(recipe) if options.dry_run else progress.status(recipe, folder))
        return
    results = options.results_dir / recipe.name
    if not options.gather:
        prepare_process()
        hosts.join(slurm=False)
        if adopted := hosts.from_first(lambda: gathering.adopt(recipe, folder, results)):
            say(f"{len(adopted)} jobs are on record in {results}")
        work = {"together": options.together, "data_dir": options.data_dir}
        sweep.work(recipe, folder, **work, say=say)
        if not hosts.is_first():
            return
    diverged = gathering.gather(recipe, folder, results)
    print(f"records in {results}; diverged: {diverged or 'none'}")


def say(line: str) -> None:
    """Prints, in the first of several processes."""
    if hosts.is_first():
        print(line, flush=True)


def parser() -> Parser:
    options = Parser(prog="sweep.py", description=__doc__)
    options.add_argument("recipe", metavar="RECIPE", help="a file under configs/")
    options.add_argument("--sweep-dir", type=pathlib.Path, help="shared [runs/sweeps/RECIPE]")
    options.add_argument("--results-dir", type=pathlib.Path, default=pathlib.Path("results"))
    options.add_argument("--data-dir", type=pathlib.Path, help="folder of prepared TFDS data sets")
    options.add_argument(
        "--together", type=int, default=1, metavar="N", help="train N runs like each other at once"
    )
    options.add_argument("--dry-run", action="store_true", help="show runs, tokens, FLOPs, hours")
    options.add_argument("--status", action="store_true", help="show what is done; run nothing")
    options.add_argument(
        "--gather", action="store_true", help="write records of what is done; run nothing"
    )
    return options


if __name__ == "__main__":
    with exit_on_bad_input("sweep.py"), interrupt.listen("sweep.py", AGAIN):
        main(sys.argv[1:])
