"""Settings of every test. Nothing of `dfa_jax` may be imported here: jaxtyping's hook comes first."""

import importlib.metadata
import os
import pathlib
import sys

# Most of the time is compiling; processes that tests start inherit this.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones know no such flag
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = " ".join(filter(None, [os.environ.get("XLA_FLAGS"), flags]))

import jax
import pytest

_ROOT = pathlib.Path(__file__).parent.parent
_CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(_ROOT / ".jax_cache")

sys.path.insert(0, str(_ROOT))  # `from tests import helpers`, whatever way pytest was started

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # if JAX was imported before
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_modifyitems(items):
    """Two processes share the cache: one may read an entry that the other has half written."""
    half_written = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
    for item in items:
        item.add_marker(half_written)


@pytest.fixture
def optimised():
    """Fits of many bootstrap samples take half the time when they are compiled as for users."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield
