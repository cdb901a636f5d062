"""Many seeds of one configuration, trained at once under `jax.vmap` on shared feedback.

What is measured is what *Align, then memorise* measures: alignment layer by layer and overall, and
how similar networks of different seeds become.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dfa_jax import metrics, tree
from dfa_jax.autodiff import loss as losses
from dfa_jax.autodiff.loops import loop_body
from dfa_jax.data import EpochShuffle, Stream, num_examples
from dfa_jax.data.base import check_labels
from dfa_jax.errors import DivergedError, InputError
from dfa_jax.train import loop
from dfa_jax.train.config import TrainConfig
from dfa_jax.train.loop import STEPS_PER_DISPATCH, Program
from dfa_jax.train.state import TrainState, init_state
from dfa_jax.train.step import train_step
from dfa_jax.types import Batch, Params

Curves = dict[str, np.ndarray]
"""Measurements by name: `[time, seed]`; `step`, `epoch` and `seed_similarity` are `[time]`."""


def fit_ensemble(
    config: TrainConfig,
    seeds: Sequence[int],
    *,
    num_examples: int = 1000,
    say: Callable[[str], None] | None = None,
) -> Curves:
    """Trains one network a seed, all at once, and measures them along the way.

    Args:
        config: the run; `seed` is replaced by each of `seeds`, `feedback_seed` must be set, so that
            all share their feedback.
        seeds: of parameters and order of examples.
        num_examples: training examples on which loss and error are measured;
            `config.alignment_examples` are those for alignment.
        say: receives one line an evaluation.

    Returns:
        By name: `step`, `epoch` (true passes over the training set); `train_loss`, nats or squared
        error per example; `train_error`, a fraction, of classifiers; everything of
        `metrics.alignment_metrics`; `seed_similarity`, the mean cosine between the weights of two
        seeds, and `seed_similarity/<map>` by linear map. The first point is step 0.

    Raises:
        InputError: no seeds, no `feedback_seed`, streamed data, a contrastive loss, or a loss that
            is no longer finite.
    """
    if config.is_contrastive:
        raise InputError(
            f"loss is '{config.loss}', and an ensemble is measured on single images; train with fit"
        )
    if not seeds or config.feedback_seed is None:
        raise InputError(
            f"seeds are {list(seeds)} and feedback_seed is {config.feedback_seed}; expected one or"
            " more seeds, and a feedback_seed for all of them to share"
        )
    program, data, sources = _prepare(config, seeds)
    num_train = sources[0].num_examples
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    states = draw_states(keys, jax.random.key(config.feedback_seed), data, program=program)
    measured = functools.partial(
        measure,
        data=data,
        program=program,
        num_examples=min(num_examples, num_train),
        num_aligned=min(config.alignment_examples, num_train),
    )
    points = [{"step": 0, "epoch": 0.0, **jax.device_get(measured(states))}]
    step = 0
    for end in config.evaluation_steps(program.num_steps, sources[0].steps_per_epoch):
        states = _advance(states, data, sources, step, end, program)
        step = end
        found = jax.device_get(measured(states))
        epoch = step / sources[0].steps_per_epoch
        points.append({"step": step, "epoch": epoch, **found})
        _check_finite(found["train_loss"], step, config)
        if say:
            say(f"epoch {epoch:.3g}: train loss {found['train_loss'].mean():.4g}")
    return {name: np.array([point[name] for point in points]) for name in points[0]}


def _prepare(
    config: TrainConfig, seeds: Sequence[int]
) -> tuple[Program, Batch, list[EpochShuffle]]:
    """What the compiled functions depend on, the data on the device, its order for each seed."""
    dataset = config.data.load()
    if isinstance(dataset.train, Stream):
        raise InputError(
            f"data set '{dataset.name}' is streamed, and an ensemble trains on data in memory; set"
            " stream to false, or train seed by seed with train.fit"
        )
    if isinstance(config.loss, str):
        check_labels(dataset)
    num_train = num_examples(dataset.train)
    sources = [EpochShuffle(num_train, config.batch_size, seed) for seed in seeds]
    program = loop.make_program(config, dataset, config.num_steps(sources[0].steps_per_epoch))
    return program, jax.device_put(dataset.train), sources


def _advance(
    states: TrainState,
    data: Batch,
    sources: Sequence[EpochShuffle],
    start: int,
    end: int,
    program: Program,
) -> TrainState:
    """Steps `start` to `end` of all seeds, a dispatch at a time."""
    for begin in range(start, end, STEPS_PER_DISPATCH):
        number = min(STEPS_PER_DISPATCH, end - begin)
        order = np.zeros((STEPS_PER_DISPATCH, len(sources), sources[0].batch_size), np.int32)
        order[:number] = np.stack([source.indices(begin, number) for source in sources], 1)
        states = run_steps(states, data, order, number, program=program)
    return states


def _check_finite(losses: np.ndarray, step: int, config: TrainConfig) -> None:
    if not np.isfinite(losses).all():
        rate = config.learning_rate
        now = "" if rate is None else f" (now {rate})"
        raise DivergedError(
            f"the training loss is {losses} after step {step}; lower optimizer.learning_rate{now}"
        )


@functools.partial(jax.jit, static_argnames="program")
def draw_states(keys: Array, feedback_key: Array, data: Batch, *, program: Program) -> TrainState:
    """One state a seed; the rule's state is the same in all."""
    example = jax.tree.map(lambda a: a[:2], data)
    parts = {"feedback_key": feedback_key, **program.initial_parts}
    return jax.vmap(lambda key: init_state(key, example, **parts))(keys)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="states")
def run_steps(
    states: TrainState,
    data: Batch,
    order: Int[Array, "most seed batch"],
    num_steps: int | Int[Array, ""],
    *,
    program: Program,
) -> TrainState:
    """The first `num_steps` rows of `order` as steps."""
    step = jax.vmap(functools.partial(train_step, **program.parts))

    def one(i, states):
        batches = jax.tree.map(lambda a: a[order[i]], data)  # [seed, batch, ...]
        return step(states, batches)[0]

    return jax.lax.fori_loop(0, num_steps, loop_body(one), states)


@functools.partial(jax.jit, static_argnames=("program", "num_examples", "num_aligned"))
def measure(
    states: TrainState, data: Batch, *, program: Program, num_examples: int, num_aligned: int
) -> dict[str, Array]:
    """All measurements at one time, `[seed]` each; similarities have no axis."""
    loss_fn = program.loss_fn
    seen, aligned = (jax.tree.map(lambda a, n=n: a[:n], data) for n in (num_examples, num_aligned))

    def one(state: TrainState) -> dict[str, Array]:
        key = program.evaluation_key
        outputs = program.model.apply(state.params, seen.inputs, state=state.model_state, key=key)
        found = {"train_loss": losses.mean(losses.as_loss(loss_fn(outputs, seen.targets)))}
        if metrics.are_labels(seen.targets, outputs):
            wrong = ~metrics.correct(outputs, seen.targets)
            found["train_error"] = wrong.astype(jnp.float32).mean()
        key = jax.random.fold_in(state.key, state.step)
        return found | metrics.alignment_metrics(
            key,
            program.model,
            program.rule,
            loss_fn,
            state.params,
            state.rule_state,
            state.model_state,
            aligned,
        )

    return jax.vmap(one)(states) | similarity(states.params, program)


def similarity(params: Params, program: Program) -> dict[str, Array]:
    """Mean cosine over all pairs of seeds, by linear map and of all parameters as one vector."""
    maps = program.model.maps
    parts = {f"seed_similarity/{one.name}": tree.get(params, one.path[:-1]) for one in maps}
    return {
        name: _mean_cosine(part) for name, part in (parts | {"seed_similarity": params}).items()
    }


def _mean_cosine(stacked: Any) -> Float[Array, ""]:
    """Over pairs of the first axis; 0 where there is one seed or a vector is zero."""
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(stacked)]
    vectors = jnp.concatenate(leaves, 1)
    norms = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / jnp.where(norms > 0, norms, 1)
    number = len(unit)
    # The sum over pairs is that over all ordered pairs, less each with itself, by two.
    total = jnp.square(unit.sum(0)).sum() - jnp.square(unit).sum()
    return total / max(number * (number - 1), 1)
