"""`TokenWindows`: windows of a text, cut when a step needs them."""

import dataclasses

import jax
import numpy as np
from jaxtyping import UInt

from dfa_jax.data.stream import Stream
from dfa_jax.errors import InputError
from dfa_jax.types import Batch


@dataclasses.dataclass(frozen=True, eq=False)
class TokenWindows(Stream):
    """Window `i` predicts tokens `i T + 1` to `i T + T` from those before them, `T = context`:

        inputs[i, t] = tokens[i T + t],   targets[i, t] = tokens[i T + t + 1].

    So every token but the first is predicted once, the last few excepted that fill no window.

    Attributes:
        tokens: the text, which may be a memory map.
        context: tokens a window, `T`.
        vocab_size: tokens are below it.
        where: set and split, for messages.
    """

    tokens: UInt[np.ndarray, " tokens"]
    context: int
    vocab_size: int
    where: str

    def __len__(self) -> int:
        """The number of windows."""
        return max(0, len(self.tokens) - 1) // self.context

    @property
    def inputs(self) -> jax.ShapeDtypeStruct:
        """Shape and type of all inputs, `[n, context]` int32."""
        return jax.ShapeDtypeStruct((len(self), self.context), np.int32)

    @property
    def targets(self) -> jax.ShapeDtypeStruct:
        """Shape and type of all targets, `[n, context]` int32."""
        return self.inputs

    def take(self, indices: np.ndarray) -> Batch:
        """These windows.

        Raises:
            InputError: a token is not of the vocabulary: the file has changed.
        """
        # A view, `[n, context + 1]`: neighbours share a token.
        windows = np.lib.stride_tricks.sliding_window_view(self.tokens, self.context + 1)
        found = windows[:: self.context][indices]
        if found.size and found.max() >= self.vocab_size:
            raise InputError(
                f"data set {self.where} has token {found.max()}; expected 0 to"
                f" {self.vocab_size - 1}: its file of tokens was changed"
            )
        return Batch(found[:, :-1].astype(np.int32), found[:, 1:].astype(np.int32))

    def read_all(self) -> Batch:
        """Every window, as arrays in memory."""
        return self.take(np.arange(len(self)))
