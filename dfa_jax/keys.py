"""Random keys by name."""

import zlib

import jax
from jaxtyping import Array


def named_key(key: Array, name: str) -> Array:
    """A key of the name's own: another name more or less changes no other's numbers."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
