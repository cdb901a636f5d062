"""`MarkovData`: a synthetic language whose entropy is known, and with it the best loss there is."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

from dfa_jax.data.base import Dataset
from dfa_jax.errors import InputError
from dfa_jax.types import Batch

_MOST_STATES = 1024  # a dense system of so many equations is solved


@dataclasses.dataclass(frozen=True)
class MarkovData:
    r"""Windows of a stationary Markov chain with random transition probabilities.

    With `k = order`, `A = num_symbols`, and a state `s` for each of the `A^k` words of `k` symbols,

        P(x_t = a | x_{t-k}, ..., x_{t-1} = s) = P_sa,   row P_s ~ Dirichlet(concentration),

    and each window of `T + 1` symbols is drawn on its own, its first `k` from the stationary
    distribution `pi`. No model has a lower expected loss than

        entropy = -sum_s pi_s sum_a P_sa log P_sa,   in nats per token,

    once it sees `k` tokens. The first `k - 1` targets of a window come with fewer, and cost more:
    `optimal_loss` is the mean over all `T` targets.

    Attributes:
        num_symbols: size of the alphabet, `A`.
        order: how many symbols the next one depends on, `k`.
        concentration: of the rows' distribution; low values make the next symbol predictable.
        context: tokens a window, `T`.
        num_train: training tokens to draw, in whole windows.
        num_test: test tokens to draw, likewise.
        seed: of the probabilities, and of the windows.

    Source: Cover and Thomas, Elements of Information Theory, chapter 4 (entropy rates).

    >>> chain = MarkovData(num_symbols=4, order=1, num_train=4096, num_test=1024)
    >>> abs(chain.entropy - chain.optimal_loss) < 1e-12
    True
    """

    num_symbols: int = 16
    order: int = 1
    concentration: float = 0.3
    context: int = 64
    num_train: int = 2**20
    num_test: int = 2**17
    seed: int = 0

    def __post_init__(self):
        if self.num_symbols < 2 or self.order < 1 or self.context < 1:
            raise InputError(
                f"num_symbols is {self.num_symbols}, order {self.order}, context {self.context};"
                " expected at least 2 symbols, 1 and 1"
            )
        if self.num_symbols**self.order > _MOST_STATES:
            raise InputError(
                f"num_symbols {self.num_symbols} and order {self.order} make"
                f" {self.num_symbols**self.order} states; expected at most {_MOST_STATES}: lower"
                " one of them"
            )
        # Lower, probabilities underflow and the chain may fall into parts.
        if not 0.05 <= self.concentration <= 1e6:
            raise InputError(
                f"concentration is {self.concentration}; expected a number from 0.05 to 1e6"
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; expected an integer from 0 to 2**32 - 1")
        for field in ("num_train", "num_test"):
            if (value := getattr(self, field)) < self.context:
                raise InputError(
                    f"{field} is {value} tokens, less than a window of {self.context}; raise it, or"
                    " lower context"
                )

    def load(self) -> Dataset:
        """Draws the windows."""
        train, test = (
            self._draw(np.random.RandomState([self.seed, split]), number // self.context)
            for split, number in ((1, self.num_train), (2, self.num_test))
        )
        return Dataset(f"markov of order {self.order}", train, test, num_classes=self.num_symbols)

    @functools.cached_property
    def transition(self) -> Float[np.ndarray, "states symbols"]:
        """`P_sa`; the last symbol of a word is its state's last digit to the base `A`."""
        from scipy import special  # slow to import

        # RandomState and not default_rng: NumPy promises that its stream never changes.
        random = np.random.RandomState([self.seed, 0])
        shape = (self.num_symbols**self.order, self.num_symbols)
        # In logarithms: G(c) = G(c + 1) U^(1/c), whose power underflows for a small c.
        larger = np.log(random.standard_gamma(self.concentration + 1, shape))
        power = np.log1p(-random.random_sample(shape)) / self.concentration
        return special.softmax(larger + power, axis=1)

    @functools.cached_property
    def stationary(self) -> Float[np.ndarray, " states"]:
        """`pi`, of every word of `order` symbols."""
        states = np.arange(len(self.transition))
        step = np.zeros((len(states), len(states)))
        for symbol in range(self.num_symbols):
            step[states, self._following(states, symbol)] += self.transition[:, symbol]
        # pi (step - 1) = 0 has one equation too many: the last makes way for sum(pi) = 1.
        system = step.T - np.eye(len(states))
        system[-1] = 1
        pi = np.linalg.solve(system, np.eye(len(states))[-1])
        pi = np.maximum(pi, 0)
        return pi / pi.sum()

    @property
    def entropy(self) -> float:
        """Entropy rate of the chain, nats per token."""
        return float(self.stationary @ _entropies(self.transition).sum(1))

    @property
    def optimal_loss(self) -> float:
        """The lowest expected loss over the targets of a window, nats per token.

        With `H_n` the entropy of `n` neighbouring symbols, `H_n = H_k + (n - k) entropy` for
        `n >= k`, and the chain rule, this is

            (1 / T) sum_t H(x_t | x_0, ..., x_{t-1}) = (H_{T+1} - H_1) / T.
        """
        return (self._block_entropy(self.context + 1) - self._block_entropy(1)) / self.context

    def _block_entropy(self, length: int) -> float:
        """`H_n`, nats."""
        words = self.stationary.reshape((self.num_symbols,) * self.order)
        shorter = words.sum(tuple(range(length, self.order)))
        return float(_entropies(shorter).sum() + max(0, length - self.order) * self.entropy)

    def _following(self, states: np.ndarray, symbol: np.ndarray | int) -> np.ndarray:
        """The states after a symbol: it comes in, the oldest one leaves."""
        return (states * self.num_symbols + symbol) % self.num_symbols**self.order

    def _draw(self, random: np.random.RandomState, number: int) -> Batch:
        """This many windows, symbol by symbol."""
        length = max(self.context + 1, self.order)
        windows = np.empty((number, length), np.int32)
        states = random.choice(len(self.stationary), number, p=self.stationary)
        digits = np.unravel_index(states, (self.num_symbols,) * self.order)
        windows[:, : self.order] = np.stack(digits, 1)
        cumulative = np.cumsum(self.transition, 1)[:, :-1]
        for t in range(self.order, length):
            uniform = random.random_sample((number, 1))
            symbols: Int[np.ndarray, " number"] = (uniform >= cumulative[states]).sum(1)
            windows[:, t], states = symbols, self._following(states, symbols)
        windows = windows[:, : self.context + 1]
        return Batch(windows[:, :-1].copy(), windows[:, 1:].copy())


def _entropies(probabilities: np.ndarray) -> np.ndarray:
    """`-p log p` of each, nats."""
    from scipy import special  # slow to import

    return special.entr(probabilities)
