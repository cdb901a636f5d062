"""What the training loop asks for, of data on the device and of a `Stream` alike."""

import concurrent.futures
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Sharding

from dfa_jax.data.base import EpochShuffle
from dfa_jax.data.stream import Stream
from dfa_jax.types import Batch

In = TypeVar("In")
Out = TypeVar("Out")

CHUNK_BYTES = 2**28
"""Most bytes of a stream's examples in one chunk, unless a single batch (or example) has more."""


def dispatches(
    data: Batch | Stream,
    source: EpochShuffle,
    start: int,
    end: int,
    *,
    most_steps: int,
    sharding: Sharding,
    pace: Callable[[], int] | None = None,
) -> Iterator[tuple[int, int, Batch, np.ndarray | None]]:
    """Steps `start` to `end`, cut into dispatches of one shape.

    Of a stream, a dispatch has the examples of its own steps, as many as fit into `CHUNK_BYTES`.
    The chunk that follows is read meanwhile: one is in use, one waits on the device, one is being
    read, so that three chunks bound the memory.

    Args:
        data: all training examples, on the device or as a stream.
        source: which examples make a step.
        start: first step.
        end: the step after the last.
        most_steps: of a dispatch.
        sharding: where chunks of a stream are put, whose axes are steps, examples, ...
        pace: asked for the number of steps of each dispatch, `most_steps` without it.

    Yields:
        First step, step after the last, data, and the rows of the data that make each step,
        `[steps, batch_size]` int32; of a stream, the data are the steps' own, `[steps, batch_size,
        ...]`, and there are no rows. The last dispatch may have fewer steps than that.
    """
    size = source.batch_size
    if isinstance(data, Stream):
        most_steps = max(1, min(most_steps, _chunk_size(data) // size))
    spans = _spans(start, end, most_steps, pace or (lambda: most_steps))
    if not isinstance(data, Stream):
        for begin, stop in spans:
            rows = np.zeros((most_steps, size), np.int32)
            rows[: stop - begin] = source.indices(begin, stop - begin)
            yield begin, stop, data, rows
        return

    def chunk(span: tuple[int, int]) -> Batch:
        begin, stop = span
        order = source.indices(begin, stop - begin)
        return _placed_steps(data, order, most_steps, sharding)

    for (begin, stop), examples in prefetched(lambda span: (span, chunk(span)), spans):
        yield begin, stop, examples, None


def _placed_steps(data: Stream, order: np.ndarray, most: int, sharding: Sharding) -> Batch:
    """The examples of these steps, `[most, batch, ...]`, with zeros behind the last step.

    Each process reads the examples of its own devices alone, each of them once.
    """
    shape = (most, order.shape[1])

    @functools.cache
    def read(first: int, last: int) -> Batch:
        own = order[:, first:last]
        examples = data.take(own.ravel())
        steps = jax.tree.map(lambda a: a.reshape(*own.shape, *a.shape[1:]), examples)
        return _padded(steps, most)

    def placed(field: str) -> jax.Array:
        one = getattr(data, field)

        def part(index: Any) -> np.ndarray:
            first, last, _ = index[1].indices(shape[1])
            return getattr(read(first, last), field)

        return jax.make_array_from_callback((*shape, *one.shape[1:]), sharding, part)

    return Batch(placed("inputs"), placed("targets"))


def _spans(start: int, end: int, most: int, pace: Callable[[], int]) -> Iterator[tuple[int, int]]:
    """First step and the step after the last, dispatch by dispatch."""
    while start < end:
        stop = min(start + min(pace(), most), end)
        yield start, stop
        start = stop


def chunks(data: Batch | Stream, sharding: Sharding) -> Iterator[Batch]:
    """All examples in order: at once, or of a stream at most `CHUNK_BYTES` at a time."""
    if not isinstance(data, Stream):
        yield data
        return
    size = _chunk_size(data)
    every = np.arange(len(data))
    parts = [every[start : start + size] for start in range(0, len(data), size)]
    yield from prefetched(lambda part: jax.device_put(data.take(part), sharding), parts)


def first(data: Batch | Stream, number: int, sharding: Sharding) -> Batch:
    """The first examples, as many as there are."""
    if isinstance(data, Stream):
        return some(data, np.arange(min(number, len(data))), sharding)
    return jax.tree.map(lambda a: a[:number], data)


def some(data: Batch | Stream, rows: np.ndarray, sharding: Sharding) -> Batch:
    """These examples."""
    if isinstance(data, Stream):
        return jax.device_put(data.take(rows), sharding)
    return jax.tree.map(lambda a: a[rows], data)


def prefetched(make: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """`map(make, items)`, where a thread makes the next one while the caller uses the last.

    >>> list(prefetched(abs, [-1, -2]))
    [1, 2]
    """
    items = iter(items)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        waiting = [thread.submit(make, item) for item in itertools.islice(items, 1)]
        while waiting:
            made = waiting.pop().result()
            waiting = [thread.submit(make, item) for item in itertools.islice(items, 1)]
            yield made


def _chunk_size(stream: Stream) -> int:
    """Examples, at least one."""
    bytes_each = sum(
        math.prod(a.shape[1:]) * a.dtype.itemsize for a in (stream.inputs, stream.targets)
    )
    return max(1, CHUNK_BYTES // bytes_each)


def _padded(batch: Batch, number: int) -> Batch:
    """With zeros up to this many examples: a chunk of another shape would be compiled anew."""

    def pad(array: np.ndarray) -> np.ndarray:
        missing = np.zeros((number - len(array), *array.shape[1:]), array.dtype)
        return np.concatenate([array, missing]) if len(missing) else array

    return jax.tree.map(pad, batch)
