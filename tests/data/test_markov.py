"""`MarkovData`: a language whose entropy, and whose lowest loss, are known."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from dfa_jax.data import MarkovData
from dfa_jax.errors import InputError

SMALL = {"context": 5, "num_train": 5, "num_test": 5}
CHAINS = [
    MarkovData(num_symbols=4, order=1, **SMALL),
    MarkovData(num_symbols=3, order=2, concentration=0.5, seed=3, **SMALL),
    MarkovData(num_symbols=2, order=4, seed=1, **SMALL),
]


def word_probabilities(chain, length):
    """Of every word of `length` symbols, one by one: `pi` of its beginning times the rest."""
    base, k = chain.num_symbols, chain.order

    def state(word):
        number = 0
        for symbol in word:
            number = number * base + symbol
        return number

    found = {}
    for word in itertools.product(range(base), repeat=max(length, k)):
        p = chain.stationary[state(word[:k])]
        for t in range(k, len(word)):
            p *= chain.transition[state(word[t - k : t]), word[t]]
        found[word[:length]] = found.get(word[:length], 0) + p
    return found


def entropy(probabilities):
    return -math.fsum(p * math.log(p) for p in probabilities.values() if p > 0)


@pytest.mark.parametrize("chain", CHAINS, ids=lambda c: f"order {c.order}")
def test_entropy_is_that_of_enumerated_blocks(chain):
    """Oracle: brute force over all words; H_{n+1} - H_n is the entropy rate for every n >= k, since a Markov chain forgets what is older, and the losses of a window add up to H_{T+1} - H_1."""
    h = [entropy(word_probabilities(chain, n)) for n in range(chain.context + 2)]
    for n in range(chain.order, chain.context + 1):
        assert h[n + 1] - h[n] == pytest.approx(chain.entropy, rel=1e-12)
    losses = [h[t + 1] - h[t] for t in range(1, chain.context + 1)]
    assert np.mean(losses) == pytest.approx(chain.optimal_loss, rel=1e-12)
    assert (chain.optimal_loss > chain.entropy + 1e-3) == (chain.order > 1)


@pytest.mark.parametrize("chain", CHAINS, ids=lambda c: f"order {c.order}")
def test_stationary(chain):
    """Oracle: invariant; words of k symbols are as probable one symbol later, and rows sum to 1."""
    np.testing.assert_allclose(chain.transition.sum(1), 1, rtol=1e-12)
    later = {}
    for word, p in word_probabilities(chain, chain.order + 1).items():
        later[word[1:]] = later.get(word[1:], 0) + p
    np.testing.assert_allclose([later[w] for w in sorted(later)], chain.stationary, rtol=1e-10)


@pytest.mark.parametrize("chain", CHAINS, ids=lambda c: f"order {c.order}")
def test_drawn_windows_have_the_chains_probabilities(chain):
    """Oracle: z-test of every word's frequency, at every place of a window, against enumeration, over 20 chains of 20,000 windows. Neighbouring places are correlated, hence 20 chains and 0.9 to 1.1 for the root mean square of z. Reversed digits of a first state, or a uniform one, give 3 or more."""
    number, length, zs = 20_000, chain.order + 1, []
    for seed in range(20):
        one = dataclasses.replace(chain, seed=seed, num_train=number * chain.context)
        batch = one.load().train
        windows = np.concatenate([batch.inputs, batch.targets[:, -1:]], 1)
        p = np.array([q for _, q in sorted(word_probabilities(one, length).items())])
        usual = (p * number > 20) & (p < 0.999)
        for start in range(windows.shape[1] - length + 1):
            words = windows[:, start : start + length].T
            codes = np.ravel_multi_index(words, (chain.num_symbols,) * length)
            counts = np.bincount(codes, minlength=len(p))
            zs.append(((counts - number * p) / np.sqrt(number * p * (1 - p)))[usual])
    z = np.concatenate(zs)
    assert 0.9 < np.sqrt(np.mean(z**2)) < 1.1
    assert np.abs(z).max() < 5.5


def test_a_perfect_predictor_has_the_optimal_loss():
    """Oracle: z-test; the mean of -log P over drawn targets against the closed form. The predictor uses the chain's own probabilities; one per cent of the loss would be 8 standard errors."""
    chain = MarkovData(num_symbols=8, order=1, context=16, num_train=16, num_test=2**20, seed=5)
    test = chain.load().test
    nats = -np.log(chain.transition[test.inputs, test.targets])
    per_window = nats.mean(1)
    error = per_window.std() / math.sqrt(len(per_window))
    assert abs(per_window.mean() - chain.optimal_loss) < 4 * error
    assert 8 * error < 0.01 * chain.optimal_loss


def test_windows_and_seeds():
    """Oracle: invariants; targets are the inputs one later, one seed is one set, training and test windows differ."""
    chain = MarkovData(num_symbols=5, order=2, context=7, num_train=100, num_test=50, seed=2)
    data, again = chain.load(), chain.load()
    for batch, number in ((data.train, 14), (data.test, 7)):
        assert batch.inputs.shape == batch.targets.shape == (number, 7)
        assert batch.inputs.dtype == batch.targets.dtype == np.int32
        np.testing.assert_array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    np.testing.assert_array_equal(data.train.inputs, again.train.inputs)
    assert not np.array_equal(data.train.inputs[:7], data.test.inputs)
    other = MarkovData(num_symbols=5, order=2, context=7, num_train=100, num_test=50, seed=3)
    assert not np.array_equal(other.load().train.inputs, data.train.inputs)
    assert data.num_classes == 5


def test_context_shorter_than_the_order():
    """Oracle: brute force over words, where no target has all the context that it depends on."""
    chain = MarkovData(num_symbols=2, order=4, context=2, num_train=4, num_test=2)
    h1, h3 = (entropy(word_probabilities(chain, n)) for n in (1, 3))
    assert chain.optimal_loss == pytest.approx((h3 - h1) / 2, rel=1e-12)
    assert chain.load().train.targets.shape == (2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_symbols": 1}, "num_symbols is 1"),
        ({"order": 0}, "order 0"),
        ({"num_symbols": 33, "order": 2}, "make 1089 states; expected at most 1024"),
        ({"concentration": 0.0}, "concentration is 0.0; expected a number from 0.05"),
        ({"num_test": 63}, "num_test is 63 tokens, less than a window of 64"),
        ({"seed": -1}, "seed is -1; expected"),
    ],
)
def test_bad_options(options, message):
    """Oracle: the message names the value and what is expected."""
    with pytest.raises(InputError, match=message):
        MarkovData(**options)
