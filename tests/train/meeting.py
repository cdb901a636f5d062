"""Several processes on this machine that meet as one run."""

import socket


def environments(number: int) -> list[dict[str, str]]:
    """What `hosts.join` is told in each of them, with a port that is free."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{found.getsockname()[1]}"
    return [
        {
            "DFA_JAX_COORDINATOR": place,
            "DFA_JAX_NUM_PROCESSES": str(number),
            "DFA_JAX_PROCESS_ID": str(own),
        }
        for own in range(number)
    ]
