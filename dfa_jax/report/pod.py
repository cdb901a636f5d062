"""A run's train step, compiled for a slice that nobody owns: does it fit, and what does it send?

JAX compiles ahead of time for a TPU topology on any machine where `libtpu` is installed.
"""

import collections
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from dfa_jax import checks
from dfa_jax.data import Dataset, MarkovData, TextData
from dfa_jax.data.locate import NotPreparedError
from dfa_jax.errors import InputError, reason
from dfa_jax.train import compiled, sharding
from dfa_jax.train.config import TrainConfig
from dfa_jax.train.program import examples, make_program
from dfa_jax.types import Batch

CHIP_GIGABYTES = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
"""Memory of a chip, by its maker (cloud.google.com/tpu/docs, system architecture)."""

POD_CHIPS = {"v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256}
"""The most chips that are one slice, or more than that, likewise."""

_STEPS = 2  # of a dispatch; they are taken one by one, so that their number costs input alone


class DoesNotFitError(InputError):
    """The compiler gave up: a device's memory is not enough."""


class Traffic(NamedTuple):
    """Operations between devices in one step, of one kind: how many, and what a device receives."""

    number: int
    bytes: int


class PodReport(NamedTuple):
    """What a compiled train step needs, on each device.

    Attributes:
        topology: that it was compiled for, as `v5e:16x16`.
        mesh: devices along each axis.
        state_bytes: of parameters, moments, feedback.
        peak_bytes: of all that is held at the worst moment, the state and the batch among them.
        chip_bytes: memory of the device.
        matmul_flops: of matrix products in a step, counted from the structure, over all devices.
        traffic: between devices, by kind of operation, loops' turns counted.
    """

    topology: str
    mesh: dict[str, int]
    state_bytes: int
    peak_bytes: int
    chip_bytes: int
    matmul_flops: int
    traffic: dict[str, Traffic]

    @property
    def fits(self) -> bool:
        """Whether the device's memory is enough."""
        return self.peak_bytes <= self.chip_bytes

    @property
    def axes(self) -> str:
        """The mesh, as `4 data x 4 model`."""
        return " x ".join(f"{size} {name}" for name, size in self.mesh.items())

    @property
    def flops_a_device(self) -> float:
        """Its share of the matrix products."""
        return self.matmul_flops / math.prod(self.mesh.values())

    def __str__(self) -> str:
        """A few lines."""
        need, have, state = (
            f"{number / 1e9:.2f}" for number in (self.peak_bytes, self.chip_bytes, self.state_bytes)
        )
        lines = [
            f"{self.topology}, {self.axes}: {'fits' if self.fits else 'DOES NOT FIT'},"
            f" {need} of {have} GB a device (state {state})",
            f"matrix products: {self.matmul_flops:.3g} FLOPs a step,"
            f" {self.flops_a_device:.3g} a device",
        ]
        lines += [
            f"{kind}: {found.number} a step, {found.bytes / 1e6:.2f} MB a device"
            for kind, found in self.traffic.items()
        ]
        return "\n".join(lines if self.traffic else [*lines, "no operations between devices"])


def compile_for(config: TrainConfig, topology: str) -> PodReport:
    """Compiles the train step of a run for a TPU topology, without such devices.

    No text is read: shapes follow from the configuration. So do those of images that are not on
    this machine, if it names their side; they are taken to be in colour.

    Args:
        config: the run.
        topology: a kind of chip and the slice's shape, as `v5e:16x16`.

    Raises:
        InputError: `libtpu` is missing, the topology is unknown, the configuration cannot be split
            over its devices, or the shape of its images is not known.
        DoesNotFitError: the compiler finds no program in the memory that there is; one that it
            finds may still need more than a device has, as the report says then.
    """
    dataset = _dataset(config)
    program = make_program(config, dataset, 1000, devices=slice_devices(topology))
    batch = examples(dataset, config.batch_size)
    state = jax.eval_shape(
        lambda key, batch: compiled.init_state(key, batch, **program.initial_parts),
        jax.random.key(0),
        batch,
    )
    state = sharding.placed(state, sharding.state_shardings(program.mesh, state))
    steps = sharding.over_steps(program.mesh)
    data = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((_STEPS, *a.shape), a.dtype, sharding=steps), batch
    )
    factors = jax.ShapeDtypeStruct((_STEPS,), np.float32)
    lowered = compiled.run_steps.lower(state, data, None, _STEPS, factors, program=program)
    try:
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFitError(f"{topology}: DOES NOT FIT ({reason(error, 200)})") from None
    memory: Any = done.memory_analysis()
    flops = checks.matmul_flops(
        jax.make_jaxpr(lambda s, b: compiled.train_step(s, b, **program.parts))(state, batch)
    )
    return PodReport(
        topology,
        dict(program.mesh.shape),
        _bytes_a_device(state),
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        CHIP_GIGABYTES[topology.partition(":")[0]] * 10**9,
        flops,
        traffic(done.as_text() or ""),
    )


def slice_devices(topology: str) -> list[Any]:
    """The devices of a topology, as descriptions.

    Raises:
        InputError: there is no such topology, or `libtpu` is missing.
    """
    kind, _, shape = topology.partition(":")
    if kind not in POD_CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        known = ", ".join(POD_CHIPS)
        raise InputError(
            f"topology is '{topology}'; expected a chip ({known}) and a shape, as v5e:16x16"
        )
    if not 0 < (chips := math.prod(map(int, shape.split("x")))) <= POD_CHIPS[kind]:
        raise InputError(
            f"topology is '{topology}', of {chips} chips; expected at most the {POD_CHIPS[kind]} of"
            f" a {kind} pod, as v5e:16x16"
        )
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"nothing can be compiled for '{topology}' here ({reason(error, 120)}); pip install"
            " 'jax[tpu]', and give a chip and a shape that there is, as v5e:16x16"
        ) from error
    return list(found.devices)


def traffic(program: str) -> dict[str, Traffic]:
    """Operations between devices in a compiled program's text, by kind.

    Those in a loop count as often as the loop turns where the compiler knows it, else once, as the
    loop over steps does. Bytes are those of an operation's result on a device.
    """
    bodies = _computations(program)
    counts: collections.Counter[str] = collections.Counter()
    sizes: collections.Counter[str] = collections.Counter()

    def visit(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            for kind, size in _operations(line):
                counts[kind] += times
                sizes[kind] += times * size
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            turns = times * int(trips[1]) if trips else times
            for called in re.findall(r"(?:body|calls|to_apply)=%?([\w.\-]+)", line):
                visit(called, turns)

    visit(_ENTRY, 1)
    return {kind: Traffic(counts[kind], sizes[kind]) for kind in sorted(counts)}


_ENTRY = "ENTRY"
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8}


def _computations(program: str) -> Mapping[str, list[str]]:
    """The lines of each computation, by name."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in program.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = found.setdefault(_ENTRY if head[1] else head[2], [])
        elif line.startswith("  "):
            current.append(line)
    return found


def _operations(line: str) -> list[tuple[str, int]]:
    """The operation between devices on a line, if it is one, and the bytes of its result."""
    kinds = "|".join(checks.COLLECTIVES)
    found = re.search(rf"= (.*?) ({kinds})(-start)?\(", line)
    if not found:
        return []
    shapes = re.findall(r"(\w+)\[([\d,]*)\]", found[1])
    if found[3] and len(shapes) > 1:  # an asynchronous one names its arguments too
        shapes = shapes[len(shapes) // 2 :]
    size = sum(
        _BYTES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in shapes
    )
    return [(found[2], size)]


def _dataset(config: TrainConfig) -> Dataset:
    """Shapes of the data: of text from the configuration, else from the data if they are here."""
    data, number = config.data, config.batch_size
    if isinstance(data, TextData | MarkovData):
        inputs = targets = jax.ShapeDtypeStruct((number, data.context), np.int32)
    else:
        try:
            return data.load()
        except NotPreparedError:
            if not (side := getattr(data, "image_size", None)):
                raise
        inputs = jax.ShapeDtypeStruct((number, side, side, 3), np.float32)
        targets = jax.ShapeDtypeStruct((number,), np.int32)
    classes = getattr(config.model, "num_outputs", 256)
    return Dataset("shapes", Batch(inputs, targets), Batch(inputs, targets), classes)


def _bytes_a_device(state: Any) -> int:
    total = 0
    for leaf in jax.tree.leaves(state):
        words = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else None
        shape = leaf.sharding.shard_shape(leaf.shape)
        total += words or math.prod(shape) * leaf.dtype.itemsize
    return total
