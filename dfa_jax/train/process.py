"""What a script does to its own process before any work; a library import never does it."""

import ctypes
import os
import pathlib
import platform

import jax

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # glibc, malloc.h


def prepare_process() -> None:
    """Keeps compiled programs on disk between runs, and freed memory in the process.

    XLA on the CPU allocates its temporary buffers afresh at every execution, and glibc hands large
    ones back to the kernel, so a step pays for page faults over and over. Set
    `DFA_JAX_KEEP_MEMORY=0` to leave the allocator alone, `JAX_COMPILATION_CACHE_DIR` to choose
    where compiled programs are kept.
    """
    if os.environ.get("DFA_JAX_KEEP_MEMORY", "1") != "0" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "dfa_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
