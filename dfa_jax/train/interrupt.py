"""A stop that loses nothing: SIGTERM, as a preempted machine gets, or Ctrl-C.

A script calls `listen`; the library leaves signals alone. The first signal is noted, and the
training loop saves the state after the steps that are under way; the second one kills as ever.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

_EXIT_CODES = {signal.SIGTERM: 0, signal.SIGINT: 128 + signal.SIGINT}
_received: list[signal.Signals] = []


class Interrupted(BaseException):
    """A run was asked to stop, and has; not an `Exception`, as `KeyboardInterrupt` is none.

    Args:
        said: what came of it.
        again: how to go on, where it is not as the script says.
    """

    def __init__(self, said: str = "", again: str = ""):
        super().__init__(said)
        self.again = again


def requested() -> bool:
    """Whether this process was asked to stop."""
    return bool(_received)


@contextlib.contextmanager
def listen(script: str, again: str) -> Iterator[None]:
    """Notes the first SIGTERM or SIGINT inside of the block; an `Interrupted` ends the process.

    It exits with 0 after SIGTERM, so that a scheduler takes the stop for what it is, and with 130
    after Ctrl-C; with 0 too where another process of the run got the signal, and this one none.
    `again` says how to go on.
    """

    def note(number: int, frame: object) -> None:
        _received.append(signal.Signals(number))
        for one, handler in before.items():
            signal.signal(one, handler)
        said = f"{script}: {_received[0].name}: stops after the steps under way\n"
        os.write(2, said.encode())  # `print` may be what was interrupted

    before = {one: signal.signal(one, note) for one in _EXIT_CODES}
    try:
        yield
    except Interrupted as stop:
        print(f"{script}: {stop}; {stop.again or again}", file=sys.stderr)
        raise SystemExit(_EXIT_CODES[_received[0]] if _received else 0) from None
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        _received.clear()
