"""Numbers for TensorBoard: an event a point, in a file that is open only while it is written to.

TensorboardX's own writer keeps its file open and writes from a thread, whose errors reach nobody.
"""

import pathlib
import struct
import time
from collections.abc import Mapping


def append(path: pathlib.Path, step: int, numbers: Mapping[str, float]) -> None:
    """Adds numbers by name at a step; the file begins with the version that TensorBoard expects."""
    # slow to import; protobuf makes these classes when they are imported
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    path.parent.mkdir(exist_ok=True)
    now = time.time()
    values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
    events = [Event(wall_time=now, step=step, summary=Summary(value=values))]
    if not path.exists():
        events.insert(0, Event(wall_time=now, file_version="brain.Event:2"))
    with path.open("ab") as file:
        file.write(b"".join(_record(event.SerializeToString()) for event in events))


def _record(content: bytes) -> bytes:
    """Length and content, each with its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(content))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    return b"".join(part for pair in zip((length, content), sums, strict=True) for part in pair)
