"""Several processes as one run: hosts of a TPU slice, tasks of Slurm, any that see one folder.

Every process runs the same program. The first one alone writes files and talks; what it finds wrong
with them is raised in all, so that none waits for another that has given up.

| environment | processes |
| --- | --- |
| `DFA_JAX_COORDINATOR=host:port`, `DFA_JAX_NUM_PROCESSES`, `DFA_JAX_PROCESS_ID` | as it says |
| inside of `srun` with several tasks | those tasks; a sweep's are workers of their own |
| `DFA_JAX_DISTRIBUTED=1` | what JAX detects: a TPU slice, Open MPI, Kubernetes |
| else | this one alone |
"""

import contextlib
import functools
import json
import os
import pathlib
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from dfa_jax.errors import InputError, reason
from dfa_jax.train import alarm
from dfa_jax.train.config import changes, to_dict

Found = TypeVar("Found")

_NAMES = ("DFA_JAX_COORDINATOR", "DFA_JAX_NUM_PROCESSES", "DFA_JAX_PROCESS_ID")


def join(environment: Mapping[str, str] = os.environ, *, slurm: bool = True) -> None:
    """Finds the other processes of this run, if the environment names any; before any other work.

    They have `DFA_JAX_TIMEOUT` seconds (300) to come together. Without `slurm`, tasks of one `srun`
    are one run only if `DFA_JAX_DISTRIBUTED` says so.

    Raises:
        InputError: a variable is missing or has no such value, or not all came in time.
    """
    options = _options(environment, slurm)
    if options is None:
        return
    timeout = _number(environment, "DFA_JAX_TIMEOUT", 300)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of no matter elsewhere
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM away from us
    if options:
        address, number, own = options.values()
        _meet(address, number, own, timeout)
    try:
        jax.distributed.initialize(**options, initialization_timeout=timeout)
    except (RuntimeError, ValueError) as error:
        named = ", ".join(f"{name} {value}" for name, value in options.items()) or "as JAX detects"
        said = reason(error, 160)
        raise InputError(
            f"the processes of this run ({named}) did not come together in {timeout} s ({said});"
            " check that all are started and reach that address"
        ) from error
    alarm.watch()


def _options(environment: Mapping[str, str], slurm: bool) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is to be told; None for a process of its own."""
    given = [name for name in _NAMES if environment.get(name)]
    if given:
        if missing := [name for name in _NAMES if name not in given]:
            raise InputError(f"{given[0]} is set and {missing[0]} is not; set {', '.join(_NAMES)}")
        address = environment[_NAMES[0]]
        number, own = (_number(environment, name, 0) for name in _NAMES[1:])
        if ":" not in address or number < 1 or not 0 <= own < number:
            raise InputError(
                f"{_NAMES[0]} is '{address}', {_NAMES[1]} {number}, {_NAMES[2]} {own}; expected"
                " host:port, a number of processes, and which of them this is, from 0"
            )
        return {"coordinator_address": address, "num_processes": number, "process_id": own}
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", 1) if slurm else 1
    if tasks > 1 or environment.get("DFA_JAX_DISTRIBUTED", "0") != "0":
        return {}
    return None


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdecimal():
        raise InputError(f"{name} is '{text}'; expected a whole number")
    return int(text)


def _meet(address: str, number: int, own: int, timeout: int) -> None:
    """Returns in all processes once all have come.

    JAX waits for them too, and aborts the process, with a stack trace, when they do not come.

    Raises:
        InputError: they have not in `timeout` seconds, or two are the same one; it says which.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout
    place = f"{_NAMES[0]} {address}"
    try:
        if own:
            _call((host, int(port)), own, deadline)
        else:
            _await((host, int(port)), set(range(1, number)), deadline)
    except _MissingError as error:
        raise InputError(
            f"{error} at {place} in {timeout} s; start all {number} and check that they reach it"
        ) from error
    except OSError as error:
        raise InputError(
            f"{place} cannot be used by process {own} of {number} in {timeout} s ({error}); it must"
            " be an address of process 0 with a free port that the others reach"
        ) from error


class _MissingError(Exception):
    """Who has not come."""


def _await(place: tuple[str, int], missing: set[int], deadline: float) -> None:
    """The first process: waits for the others' numbers, and then tells them to go on."""
    calls = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", place[1])))
        while missing:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                call, _ = server.accept()
                stack.enter_context(call)
                call.settimeout(1.0)
                own = int(call.recv(16) or -1)
            except TimeoutError:
                if time.monotonic() > deadline:
                    who = ", ".join(map(str, sorted(missing)))
                    raise _MissingError(f"process {who} did not come") from None
                continue
            except ValueError:
                continue  # a stranger
            if own in missing:
                missing.remove(own)
                calls.append(call)
        for call in calls:
            call.sendall(b"go")


def _call(place: tuple[str, int], own: int, deadline: float) -> None:
    """Another process: tells the first one its number, and waits for its word."""
    while True:
        left = deadline - time.monotonic()
        try:
            with socket.create_connection(place, timeout=max(left, 0.01)) as call:
                call.sendall(str(own).encode())
                if call.recv(2) == b"go":
                    return
        except OSError:
            if left <= 0:
                raise
        if left <= 0:
            raise _MissingError("the others, or process 0, did not come")
        time.sleep(min(0.2, left))


def is_first() -> bool:
    """Whether this process is the one that writes and talks."""
    return jax.process_index() == 0


def from_first(function: Callable[[], Found]) -> Found:
    """What the function returns in the first process, JSON-able, told to all.

    Raises:
        InputError: the function did, in the first process.
    """
    if jax.process_count() == 1:
        return function()
    told: dict[str, Any] = {}
    if is_first():
        try:
            told = {"found": function()}
        except InputError as error:
            told = {"error": str(error)}
    told = json.loads(_tell(json.dumps(told)))
    if "error" in told:
        raise InputError(told["error"])
    return told["found"]


def anyone(said: str) -> str:
    """What the first process with something to say says, told to all; "" if none has."""
    if jax.process_count() == 1:
        return said
    speakers = np.flatnonzero(multihost_utils.process_allgather(np.array(bool(said))))
    return _tell(said, int(speakers[0])) if speakers.size else ""


def agree(config: Any) -> None:
    """Refuses processes that were given another configuration than the first.

    Raises:
        InputError: in all processes; those that differ name the first setting in which they do.
    """
    if jax.process_count() == 1:
        return
    first = from_first(lambda: to_dict(config))
    found = changes(first, config)
    differ = np.flatnonzero(multihost_utils.process_allgather(np.array(bool(found))))
    if differ.size:
        what = f" (here {found[0]})" if found else ""
        raise InputError(
            f"process {differ[0]} of {jax.process_count()} has another configuration than process"
            f" 0{what}; give all the same one"
        )


def check_shared(folder: pathlib.Path) -> None:
    """Refuses a folder of which the processes each have one of their own, or none.

    Raises:
        InputError: in all processes; else they would wait long for each other's checkpoints.
    """
    if jax.process_count() == 1:
        return
    mark = folder / from_first(lambda: _mark(folder))
    blind = np.flatnonzero(multihost_utils.process_allgather(np.array(not mark.exists())))
    if is_first():
        mark.unlink()
    if blind.size:
        raise InputError(
            f"process {blind[0]} of {jax.process_count()} does not see the files that process 0"
            f" writes to {folder}; choose a folder that all share"
        )


def _mark(folder: pathlib.Path) -> str:
    """The name of a new file there."""
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=".shared-")
        os.close(handle)
    except OSError as error:
        raise InputError(f"{folder} cannot be written to ({error.strerror})") from error
    return pathlib.Path(name).name


def most(mesh: Mesh, *values: float) -> Float[np.ndarray | Array, " values"]:
    """The largest of each value over all processes; fetch it when it is needed."""
    own = np.array(values, np.float32)
    if jax.process_count() == 1:
        return own
    everyone = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    shape = (mesh.size, len(own))
    all_values = jax.make_array_from_callback(shape, everyone, lambda index: own[None])
    return _most(all_values, mesh=mesh)


def _tell(text: str, source: int = 0) -> str:
    """The text of one process, in all."""
    is_source = jax.process_index() == source
    tell = functools.partial(multihost_utils.broadcast_one_to_all, is_source=is_source)
    content = np.frombuffer(text.encode(), np.uint8)
    size = int(tell(np.array(len(content))))
    padded = content if is_source else np.zeros(size, np.uint8)
    return np.asarray(tell(padded)).tobytes().decode()


@functools.partial(jax.jit, static_argnames="mesh")  # compiled once, not at every dispatch
def _most(values: Array, *, mesh: Mesh) -> Array:
    return jax.lax.with_sharding_constraint(values.max(0), NamedSharding(mesh, PartitionSpec()))
