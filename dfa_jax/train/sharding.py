"""The device mesh, and where each array of a run lives on it.

| axis | what is split over it |
| --- | --- |
| `data` | the batch |
| `fsdp` | in its place: the batch, and every matrix of the state, which is whole nowhere |
| `model` | every matrix along its layer's width, and with it the activities behind it |
| `layer` | in its place: the blocks of a layer-parallel backward pass (`autodiff.layers`) |

Results do not depend on the mesh, but for the order of sums: everything that is drawn is drawn from
global keys, for all examples and all entries.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dfa_jax.autodiff.layers import LAYER_AXIS
from dfa_jax.errors import InputError


def make_mesh(
    *,
    fsdp: bool = False,
    model_axis: int = 1,
    layer_axis: int = 1,
    batch_size: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """All devices, of all processes, or these, as `data` (or `fsdp`) x `model` (or `layer`).

    Raises:
        InputError: the devices do not divide by `model_axis` or `layer_axis`, both are given, or
            the batch does not divide by the other axis.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if model_axis > 1 and layer_axis > 1:
        raise InputError(
            f"model_axis is {model_axis} and layer_axis is {layer_axis}; expected one of them to"
            " be 1: a mesh has two axes, and the batch has the other"
        )
    name, second = ("layer_axis", layer_axis) if layer_axis != 1 else ("model_axis", model_axis)
    if second < 1 or count % second:
        raise InputError(
            f"{name} is {second}, which does not divide the {count} devices; choose a divisor"
        )
    data_axis = count // second
    if batch_size is not None and batch_size % data_axis:
        nearest = max(data_axis, round(batch_size / data_axis) * data_axis)
        raise InputError(
            f"batch_size {batch_size} is not divisible by the {data_axis} devices along the data"
            f" axis; use {nearest}"
        )
    return mesh_of((data_axis, second), devices, fsdp=fsdp, layers=layer_axis > 1)


def mesh_of(
    shape: tuple[int, int], devices: Any, *, fsdp: bool = False, layers: bool = False
) -> Mesh:
    """These devices as `data` (or `fsdp`) x `model` (or `layer`)."""
    # JAX makes explicit axes by default, under which an unchanged Flax module does not run.
    axis_types = (AxisType.Auto, AxisType.Auto)
    names = ("fsdp" if fsdp else "data", LAYER_AXIS if layers else "model")
    return jax.make_mesh(shape, names, axis_types=axis_types, devices=devices)


def known(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Where a step is traced: lets the layer-parallel backward pass find its axis."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def in_force(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Where a run stands, if the caller has set a mesh: that one is not the run's.

    Arrays of two meshes do not meet, least of all under explicit axes (`jax.set_mesh`).
    """
    is_set = bool(jax.sharding.get_abstract_mesh().axis_names)
    return jax.set_mesh(mesh) if is_set else contextlib.nullcontext()


def batch_shards(mesh: Mesh) -> int:
    """In how many parts a batch is split."""
    return mesh.shape[mesh.axis_names[0]]


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis, the examples, split over the first axis."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))


def over_steps(mesh: Mesh) -> NamedSharding:
    """Batches, step by step: their examples split as `over_batch`."""
    return NamedSharding(mesh, PartitionSpec(None, mesh.axis_names[0]))


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """A sharding for each array of a state, abstract or not.

    Matrices (kernels, feedback, optimiser moments) are split along their last axis, the layer's
    width, over the model axis, and along the longest of the others over the fsdp axis, where these
    divide; everything else is on every device.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(mesh, leaf, fsdp=True)), state)


def placed(tree: Any, shardings: Any) -> Any:
    """Shapes and types of arrays, abstract or not, with these shardings: what to compile for."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings
    )


def gathered(mesh: Mesh, tree: Any) -> Any:
    """Parameters, feedback and gradients as a step computes with them: whole along `fsdp`.

    Said in so many words: left to choose, XLA may send activities in place of parameters. On the
    CPU (jaxlib 0.10.2) it had `e W^T` silently wrong, `W` split both ways on a mesh of three axes.
    """
    if "fsdp" not in mesh.shape:
        return tree
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(mesh, leaf, fsdp=False)), tree)
    return jax.lax.with_sharding_constraint(tree, shardings)


def _spec(mesh: Mesh, leaf: Any, *, fsdp: bool) -> PartitionSpec:
    """Over which axes each of the array's is split."""
    spec: list[str | None] = [None] * leaf.ndim
    if leaf.ndim >= 2:
        width = mesh.shape.get("model", 1)
        if width > 1 and leaf.shape[-1] % width == 0:
            spec[-1] = "model"
        size = mesh.shape.get("fsdp", 1)
        free = [i for i in range(leaf.ndim) if not spec[i] and leaf.shape[i] % size == 0]
        if fsdp and size > 1 and free:
            spec[max(free, key=lambda i: leaf.shape[i])] = "fsdp"
    return PartitionSpec(*spec)
