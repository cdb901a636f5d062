"""Checkpoints of all the state, by Orbax; what comes back is compared with what went in."""

import contextlib
import gc
import logging
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32

from dfa_jax.errors import InputError, reason
from dfa_jax.train import aside, hosts
from dfa_jax.train.config import TrainConfig, run_changes, to_dict
from dfa_jax.train.state import TrainState


class DamagedError(InputError):
    """A checkpoint cannot be read, or is not what was written."""


class Progress(NamedTuple):
    """Where a run stands between two evaluations.

    Attributes:
        since: the step of the last evaluation, 0 before the first.
        sums: of each training metric over the steps since then.
        wall_seconds: of the run so far.
    """

    since: int = 0
    sums: Mapping[str, float] = MappingProxyType({})
    wall_seconds: float = 0.0


class _Found(NamedTuple):
    """What a checkpoint holds, and the settings in which its run differs from ours."""

    state: TrainState
    progress: Progress
    digest: list[int]
    other: list[str]


class Checkpoints:
    """The newest two checkpoints of a run, under `<run_dir>/checkpoints`; a context manager.

    Each holds the state, where the run stood, the configuration and a checksum of the state, so
    that a damaged one, or one of another run, is known for what it is.
    """

    def __init__(self, directory: pathlib.Path, config: TrainConfig):
        import orbax.checkpoint as ocp  # slow to import

        # Not asynchronous: the next dispatch is given these very buffers to write over.
        # Listed by one process for all, which a file system may show different folders.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            create=True,
            enable_async_checkpointing=False,
            single_host_load_and_broadcast=True,
        )
        self._directory, self._config = directory.resolve(), config
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()  # waits for what is being written

    @property
    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, the newest first."""
        return sorted(map(int, self._manager.all_steps()), reverse=True)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Writes the state under its step; a stop while writing leaves the one before whole.

        Raises:
            InputError: it cannot be written.
        """
        import orbax.checkpoint as ocp  # slow to import

        step = int(state.step)
        notes = {
            "progress": progress._asdict() | {"sums": dict(progress.sums)},
            "config": to_dict(self._config),
            "digest": digest(state).tolist(),
        }
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(_parts(state)), notes=ocp.args.JsonSave(notes)
        )
        if why := self._failure(step, arguments):
            raise self.not_written(f"the checkpoint of step {step}", why)

    def _failure(self, step: int, arguments: Any) -> str:
        """Writes; why that failed, or nothing."""
        with _quiet():
            try:
                if step in self.steps:  # saved before it was evaluated
                    self._manager.delete(step)
                self._manager.save(step, args=arguments)
                return ""
            except Exception as error:  # Orbax and TensorStore have no class for a full disk
                why = reason(error, 120)
            time.sleep(0.5)  # other arrays are under way
            gc.collect()  # tasks that failed say so when they are forgotten, as the error is by now
        return why

    def not_written(self, what: str, why: str) -> InputError:
        """What to say of a disk that is full, or cannot be written to any more."""
        kept, then = "there is no checkpoint yet", "go on"
        if self.steps:
            kept = f"the checkpoint of step {self.steps[0]} is whole"
        if aside.is_begun(self._directory.parent):
            kept, then = "the run that --overwrite set aside comes back", "begin again"
        return InputError(
            f"{what} cannot be written to {self._directory.parent} ({why}); {kept}: make room there"
            f" or let it be written to, and {then}"
        )

    def restore(self, like: Any, step: int) -> tuple[TrainState, Progress]:
        """The state of a step, like the abstract `like`: shapes, types, shardings.

        Raises:
            DamagedError: it cannot be read, is of another run, or not the state that was written;
                in all processes, whichever of them found it.
        """
        folder, found, failure = self._directory / str(step), None, None
        try:
            found = self._read(like, folder)
        except Exception as error:  # over broken files Orbax raises many things, plain ones too
            failure = error
        if said := hosts.anyone(reason(failure, 120) if failure else ""):
            raise DamagedError(f"checkpoint {folder} cannot be read ({said})") from failure
        assert found
        if found.other:
            raise DamagedError(f"checkpoint {folder} is of another run ({found.other[0]})")
        if not np.array_equal(found.digest, digest(found.state)):
            raise DamagedError(f"checkpoint {folder} is not what was written there")
        return found.state, found.progress

    def _read(self, like: Any, folder: pathlib.Path) -> "_Found":
        """What this process needs of a checkpoint; it waits for no other, as one might fail."""
        import orbax.checkpoint as ocp  # slow to import

        own = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
        handler = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
        )
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(_parts(like)), notes=ocp.args.JsonRestore()
        )
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            restored = reader.restore(folder, args=arguments)
        state, notes = TrainState(**restored["state"]), restored["notes"]
        other = run_changes(notes["config"], self._config)
        return _Found(state, Progress(**notes["progress"]), notes["digest"], other)

    def set_aside(self, step: int) -> pathlib.Path:
        """Moves a checkpoint out of the way, to where it can be looked at.

        Raises:
            InputError: it cannot be moved.
        """
        aside = self._directory.with_name("damaged") / str(step)

        def move() -> None:
            try:
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                (self._directory / str(step)).rename(aside)
            except OSError as error:
                raise InputError(
                    f"checkpoint {self._directory / str(step)} is damaged and cannot be moved to"
                    f" {aside} ({error.strerror}); let that folder be written to"
                ) from error

        hosts.from_first(move)
        self._manager.reload()
        return aside


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is said inside; Orbax and TensorStore would tell of a full disk for every array."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before, hook = [one.disabled for one in loggers], sys.unraisablehook
    try:
        for one in loggers:
            one.disabled = True
        sys.unraisablehook = lambda _: None
        yield
    finally:
        sys.unraisablehook = hook
        for one, was in zip(loggers, before, strict=True):
            one.disabled = was


def digest(state: TrainState) -> UInt32[np.ndarray, " leaves"]:
    """A checksum of every array's bits, the same however the arrays are sharded.

        sum_i (2 (i . c) + 1) bits_i  mod 2^32,    c = 0x9E3779B1 (1, 3, 5, ...)

    over the indices `i`: in integers, so that no order of summation matters.
    """
    found = _digest(_parts(state))
    if jax.process_count() > 1:
        found = multihost_utils.process_allgather(found, tiled=True)
    return np.asarray(found)


@jax.jit
def _digest(parts: dict[str, Any]) -> Array:
    return jnp.stack([_digest_of(leaf) for leaf in jax.tree.leaves(parts)])


def _digest_of(leaf: Array) -> Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == bool:
        leaf = leaf.astype(jnp.uint8)
    word = min(leaf.dtype.itemsize, 4)
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * word}")).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place += index * jnp.uint32((0x9E3779B1 * (2 * axis + 1)) % 2**32)
    return jnp.sum((2 * place + 1) * bits, dtype=jnp.uint32)


def _parts(state: TrainState) -> dict[str, Any]:
    """What is stored, by name; no `readout` and no `model_state` where there is none."""
    parts = state._asdict()
    for name in ("readout", "model_state"):
        if not jax.tree.leaves(parts[name]):
            del parts[name]
    return parts
