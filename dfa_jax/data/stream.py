"""`Stream`: examples that are read by index when a step needs them."""

import abc

import jax
import numpy as np

from dfa_jax.types import Batch


class Stream(abc.ABC):
    """Examples in a fixed order, of which only those asked for are in memory.

    It stands where a `Batch` of arrays may stand: `inputs` and `targets` tell shape and type of all
    examples, `take` reads some.
    """

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @property
    @abc.abstractmethod
    def inputs(self) -> jax.ShapeDtypeStruct:
        """Shape and type of all inputs, `[n, ...]`."""

    @property
    @abc.abstractmethod
    def targets(self) -> jax.ShapeDtypeStruct:
        """Shape and type of all targets, `[n, ...]`."""

    @abc.abstractmethod
    def take(self, indices: np.ndarray) -> Batch:
        """The examples at these places of the order, as NumPy arrays."""
