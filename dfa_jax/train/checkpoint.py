"""Checkpoints of all the state, by Orbax."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from dfa_jax.errors import InputError
from dfa_jax.train.state import TrainState


class Checkpoints:
    """The newest two checkpoints of a run, under `<run_dir>/checkpoints`; a context manager."""

    def __init__(self, directory: pathlib.Path):
        # Not asynchronous: the next dispatch is given these very buffers to write over.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, create=True, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()  # waits for what is being written

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, if there is one."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Writes the state under its step; a stop while writing leaves the one before whole."""
        arguments = ocp.args.StandardSave(_parts(state))
        self._manager.save(int(state.step), args=ocp.args.Composite(state=arguments))

    def restore(self, like: Any, step: int | None = None) -> TrainState:
        """The newest state, or that of a step, like the abstract `like`: shapes, types, shardings.

        Raises:
            InputError: the checkpoint is damaged.
        """
        arguments = ocp.args.StandardRestore(_parts(like))
        step = self.latest if step is None else step
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(state=arguments))
        except (KeyError, ValueError, OSError) as error:  # what Orbax raises over missing files
            folder = self._manager.directory / str(step)
            raise InputError(
                f"checkpoint {folder} cannot be read ({str(error)[:100]}); delete that folder to go"
                " on from the one before, or start again with --overwrite"
            ) from error
        return TrainState(**restored["state"])


def _parts(state: TrainState) -> dict[str, Any]:
    """What is stored, by name; no `readout` where there is none, as before there were any."""
    parts = state._asdict()
    if not jax.tree.leaves(state.readout):
        del parts["readout"]
    return parts
