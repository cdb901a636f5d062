"""The device mesh, and where each array of a run lives on it.

| axis | what is split over it |
| --- | --- |
| `data` | the batch |
| `fsdp` | the batch, and every matrix: parameters, moments and feedback are whole nowhere |
| `model` | every matrix along its layer's width, and with it the activities behind it |

Results do not depend on the mesh, but for the order of sums: everything that is drawn is drawn from
global keys, for all examples and all entries.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dfa_jax.errors import InputError

AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")


def make_mesh(
    *,
    fsdp_axis: int = 1,
    model_axis: int = 1,
    batch_size: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """All devices, of all processes, or these, as `data` x `fsdp` x `model`.

    The first axis takes what the others leave.

    Raises:
        InputError: the devices do not divide by the axes, or the batch by those it is split over.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    for name, size in (("fsdp_axis", fsdp_axis), ("model_axis", model_axis)):
        if size < 1 or count % size:
            raise InputError(
                f"{name} is {size}, which does not divide the {count} devices; choose a divisor"
            )
    if count % (fsdp_axis * model_axis):
        raise InputError(
            f"fsdp_axis {fsdp_axis} times model_axis {model_axis} does not divide the {count}"
            " devices; choose smaller ones"
        )
    shards = count // model_axis
    if batch_size is not None and batch_size % shards:
        nearest = max(shards, round(batch_size / shards) * shards)
        raise InputError(
            f"batch_size {batch_size} is not divisible by the {shards} devices along the data"
            f" and fsdp axes; use {nearest}"
        )
    return mesh_of((shards // fsdp_axis, fsdp_axis, model_axis), devices)


def mesh_of(shape: tuple[int, int, int], devices: Any) -> Mesh:
    """These devices as `data` x `fsdp` x `model`."""
    # JAX makes explicit axes by default, under which an unchanged Flax module does not run.
    axis_types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(shape, AXES, axis_types=axis_types, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis, the examples, split over the data and the fsdp axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def over_steps(mesh: Mesh) -> NamedSharding:
    """Batches, step by step: their examples split as `over_batch`."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """A sharding for each array of a state, abstract or not.

    Matrices (kernels, feedback, optimiser moments) are split along their last axis, the layer's
    width, over the model axis, and along the longest of the others over the fsdp axis, where these
    divide; everything else is on every device.
    """

    def place(leaf: Any) -> NamedSharding:
        spec: list[str | None] = [None] * leaf.ndim
        if leaf.ndim >= 2:
            if mesh.shape["model"] > 1 and leaf.shape[-1] % mesh.shape["model"] == 0:
                spec[-1] = "model"
            free = [i for i in range(leaf.ndim) if not spec[i] and not leaf.shape[i] % fsdp]
            if fsdp > 1 and free:
                spec[max(free, key=lambda i: leaf.shape[i])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    fsdp = mesh.shape["fsdp"]
    return jax.tree.map(place, state)
