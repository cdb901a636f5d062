"""The device mesh, and where each array of a run lives on it."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dfa_jax.errors import InputError


def make_mesh(*, model_axis: int = 1, batch_size: int | None = None) -> Mesh:
    """All devices as `data` x `model`, with `model_axis` devices along the second.

    Raises:
        InputError: the devices do not divide by `model_axis`, or the batch by the data axis.
    """
    count = jax.device_count()
    if model_axis < 1 or count % model_axis:
        raise InputError(
            f"model_axis is {model_axis}, which does not divide the {count} devices; choose a"
            " divisor"
        )
    data_axis = count // model_axis
    if batch_size is not None and batch_size % data_axis:
        nearest = max(data_axis, round(batch_size / data_axis) * data_axis)
        raise InputError(
            f"batch_size {batch_size} is not divisible by the {data_axis} devices along the data"
            f" axis; use {nearest}"
        )
    # JAX makes explicit axes by default, under which an unchanged Flax module does not run.
    axis_types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data_axis, model_axis), ("data", "model"), axis_types=axis_types)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the data axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """A sharding for each array of a state, abstract or not.

    Matrices (kernels, feedback, optimiser moments) are split along their last axis, the layer's
    width, over the model axis where it divides; everything else is on every device.
    """
    size = mesh.shape["model"]

    def place(leaf: Any) -> NamedSharding:
        if size > 1 and leaf.ndim >= 2 and leaf.shape[-1] % size == 0:
            return NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 1), "model"))
        return replicated(mesh)

    return jax.tree.map(place, state)
