"""What makes one process of a run fail ends all of them, soon and in its words.

Else the others would wait, in a sum over devices or for a checkpoint, for one that has given up,
until JAX misses it minutes later and aborts them with a stack trace. Most failures are found by all
processes alike: those have ended by themselves before the alarm is heard.
"""

import atexit
import os
import sys
import threading
import time
from typing import Any

import jax

_KEY = "dfa_jax/failure"
_GRACE_SECONDS = 5.0  # for those that fail too
_rung = threading.Event()  # this process has failed
_said = threading.Event()  # it has said why another one did
_over = threading.Event()  # it ends by itself


def watch() -> None:
    """Has this process end with another one that rings; call it after all have come together."""
    atexit.register(_over.set)  # before JAX's own, which lets the others go
    if connection := _connection():
        threading.Thread(target=_listen, args=connection, daemon=True).start()


def ring(reason: str) -> bool:
    """Tells the other processes why this one fails; it may then wait for them, but not for long.

    Returns:
        Whether the reason is worth saying; that another process is gone is none.
    """
    if connection := _connection():
        client, own = connection
        _rung.set()
        try:
            client.key_value_set(_KEY, f"{own}: {reason}")
        except Exception:  # another one was first, or nobody is left
            return not _said.is_set()
    return True


def _listen(client: Any, own: int) -> None:
    while not (reason := _heard(client)):
        time.sleep(1.0)
        if _over.is_set() and not _rung.is_set():
            return
    time.sleep(_GRACE_SECONDS)
    if not _rung.is_set():
        _said.set()
        print(f"stopped by an error of process {reason}", file=sys.stderr, flush=True)
    # The others have said so too, by then. The first process goes last: JAX aborts who misses it.
    time.sleep(2.0 if own else 3.0)
    os._exit(2)  # the main thread may wait for ever, where no exception reaches it


def _heard(client: Any) -> str:
    try:
        return client.key_value_try_get(_KEY)
    except Exception:  # it has no class of its own for "not there"
        return ""


def _connection() -> tuple[Any, int] | None:
    """To the store of the process that all know, and which process this is; JAX has no public name.

    Where another version of JAX has none of this, nobody rings, and nothing else changes.
    """
    state = getattr(getattr(getattr(jax, "_src", None), "distributed", None), "global_state", None)
    client, own = getattr(state, "client", None), getattr(state, "process_id", None)
    return None if client is None or own is None else (client, own)
