"""What does not depend on the processes, computed by several of them, one layout after another.

`python -m tests.train.layouts FOLDER` leaves, for each layout, in `FOLDER/LAYOUT` the losses of the cases
of CI, the states that were restored from the checkpoints of the layout before, and checkpoints of them; in
the first layout also the run in `FOLDER/run`, brought to its end. With `others` behind it, it leaves the
losses of the other cases, and nothing else. One process imports everything
and forks before JAX has started its threads, so that a process costs no second import.
"""

import os
import pathlib
import sys
import time
import warnings

import jax
import numpy as np
import sklearn.datasets  # noqa: F401  two seconds, here once for all processes
from jax.experimental import multihost_utils

from dfa_jax.train import checkpoint, fit, hosts, sharding
from tests.train import meeting, small, test_meshes

LAYOUTS = {  # number of processes, devices of each, and the mesh of them all
    "2x4": (2, 4, (4, 2, True)),
    "4x1": (4, 1, (4, 1, False)),
}
STEP = 3
RULES = ("direct_feedback_alignment", "kolen_pollack")  # feedback in the rule's state, or trained
SECONDS = 600  # for all cases of a layout, on a machine that does much else


def main(folder: pathlib.Path, *, others: bool) -> None:
    """One layout after another; each passes its checkpoints on."""
    before = folder / "first"
    for name, (number, devices, _) in LAYOUTS.items():
        (folder / name).mkdir()
        members = []
        for environment in meeting.environments(number):
            if child := os.fork():
                members.append(child)
                continue
            jax.config.update("jax_num_cpu_devices", devices)
            hosts.join(environment)
            mesh = small.mesh(*LAYOUTS[name][2][:2], fsdp=LAYOUTS[name][2][2])
            if not others:
                member(folder, before, name, mesh)
            note_losses(folder / name, mesh, others=others)
            raise SystemExit
        wait_for(members, name)
        before = folder / name


def wait_for(members: list[int], name: str) -> None:
    """Ends with the members, all of them once one has failed or time is up."""
    deadline = time.monotonic() + SECONDS
    while members:
        ended, status = os.waitpid(members[0], os.WNOHANG)
        if ended:
            members.pop(0)
        if status or time.monotonic() > deadline:
            for one in members:
                os.kill(one, 9)
            raise SystemExit(f"{name}: {status=}, {len(members)} left")
        time.sleep(0.05)


def member(folder: pathlib.Path, before: pathlib.Path, name: str, mesh: jax.sharding.Mesh) -> None:
    """What each process of a layout does with checkpoints."""
    for rule in RULES:
        if name == "2x4":
            refuse(folder, before, rule, mesh)
        state = move(before / rule, folder / name / rule, rule, mesh)
        parts = multihost_utils.process_allgather(small.plain(state), tiled=True)
        if hosts.is_first():
            np.savez(folder / name / rule / "state.npz", *jax.tree.leaves(parts))
    if name == "2x4":
        fit(small.config(RULES[0]), run_dir=folder / "run", resume=True, progress=False)


def note_losses(folder: pathlib.Path, mesh: jax.sharding.Mesh, *, others: bool) -> None:
    """Leaves the losses of the cases of CI, or of the others."""
    found = {
        f"{model} {rule}": test_meshes.losses(model, rule, mesh)
        for model, rule in test_meshes.CASES
        if ((model, rule) in test_meshes.IN_CI) != others
    }
    if hosts.is_first():
        np.savez(folder / "losses.npz", **found)


def refuse(folder: pathlib.Path, before: pathlib.Path, rule: str, mesh: jax.sharding.Mesh) -> None:
    """Notes what each process says of a checkpoint that the last one alone finds damaged.

    It sees another one too, as on a file server whose news are late.
    """
    own = jax.process_index()
    seen = folder / "cut" if own == jax.process_count() - 1 else before
    with checkpoint.Checkpoints(seen / rule, small.config(rule)) as checkpoints:
        (folder / f"seen by {own} of {rule}").write_text(str(checkpoints.steps))
        try:
            checkpoints.restore(like(rule, mesh), STEP)
        except checkpoint.DamagedError as error:
            (folder / f"said by {own} of {rule}").write_text(str(error))


def move(
    source: pathlib.Path, target: pathlib.Path, rule: str, mesh: jax.sharding.Mesh
) -> checkpoint.TrainState:
    """The state of a checkpoint, on a mesh, and a checkpoint of it there."""
    config = small.config(rule)
    with checkpoint.Checkpoints(source, config) as checkpoints:
        state, progress = checkpoints.restore(like(rule, mesh), STEP)
    with checkpoint.Checkpoints(target, config) as checkpoints:
        checkpoints.save(state, progress)
    return state


def like(rule: str, mesh: jax.sharding.Mesh) -> checkpoint.TrainState:
    """The abstract state of the rule's small run on a mesh."""
    state = jax.eval_shape(lambda: small.state(small.program(small.config(rule), mesh)))
    return sharding.placed(state, sharding.state_shardings(mesh, state))


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of forking, which is safe until JAX has a backend
    main(pathlib.Path(sys.argv[1]), others=sys.argv[2:] == ["others"])
