"""The compiled functions of the loop: draw a state, take many steps, evaluate, measure."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dfa_jax import metrics
from dfa_jax.losses import LOSSES, softmax_cross_entropy
from dfa_jax.train import sharding
from dfa_jax.train.program import Program
from dfa_jax.train.state import TrainState, init_state
from dfa_jax.train.step import train_step
from dfa_jax.types import Batch, Params, PRNGKey

_EVAL_EXAMPLES, _EVAL_TARGETS = 500, 2**13  # at most so many at once


@functools.partial(jax.jit, static_argnames="program")
def draw_state(
    key: PRNGKey, feedback_key: PRNGKey | None, batch: Batch, *, program: Program
) -> TrainState:
    """`init_state` on the devices where the state stays; one compilation serves every seed."""
    state = init_state(key, batch, feedback_key=feedback_key, **program.initial_parts)
    return jax.lax.with_sharding_constraint(state, sharding.state_shardings(program.mesh, state))


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def run_steps(
    state: TrainState,
    data: Batch,
    order: Int[Array, "most batch"],
    num_steps: int | Int[Array, ""],
    rate_factors: Float[Array, " most"] | None = None,
    *,
    program: Program,
) -> tuple[TrainState, dict[str, Array]]:
    """The first `num_steps` rows of `order` as steps; loss and accuracy of each, zeros behind them.

    The learning rate of each step is multiplied by its factor, if there are any.
    """

    def one(i, carry):
        state, noted = carry
        factor = None if rate_factors is None else rate_factors[i]
        state, found = _step(state, data, order[i], factor, program)
        return state, _noted(noted, i, found)

    state, noted = jax.lax.fori_loop(0, num_steps, one, (state, _nothing(len(order))))
    shardings = sharding.state_shardings(program.mesh, state)
    return jax.lax.with_sharding_constraint(state, shardings), noted


@functools.partial(jax.jit, static_argnames="program", donate_argnames="states")
def run_steps_together(
    states: tuple[TrainState, ...],
    data: Batch,
    order: Int[Array, "most run batch"],
    num_steps: int | Int[Array, ""],
    rate_factors: Float[Array, " run"],
    *,
    program: Program,
) -> tuple[tuple[TrainState, ...], tuple[dict[str, Array], ...]]:
    """As `run_steps`, for several runs at once under `jax.vmap`, each with a factor of its own."""

    def one(i, carry):
        stacked, noted = carry
        step = jax.vmap(lambda state, rows, factor: _step(state, data, rows, factor, program))
        stacked, found = step(stacked, order[i], rate_factors)
        return stacked, _noted(noted, i, found)

    number = len(states)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    begin = (stacked, _nothing(len(order), number))
    stacked, noted = jax.lax.fori_loop(0, num_steps, one, begin)
    apart = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(number)]
    shardings = sharding.state_shardings(program.mesh, apart[0])
    states = tuple(jax.lax.with_sharding_constraint(state, shardings) for state in apart)
    own = tuple(jax.tree.map(lambda leaf, i=i: leaf[:, i], noted) for i in range(number))
    return states, own


def _nothing(*shape: int) -> dict[str, Array]:
    """Where metrics are noted, step by step."""
    return {"loss": jnp.zeros(shape), "accuracy": jnp.zeros(shape)}


def _noted(noted: dict[str, Array], i: Array, found: dict[str, Array]) -> dict[str, Array]:
    return jax.tree.map(lambda all, one: all.at[i].set(one), noted, found)


def _step(
    state: TrainState,
    data: Batch,
    rows: Int[Array, " batch"],
    rate_factor: Float[Array, ""] | None,
    program: Program,
) -> tuple[TrainState, dict[str, Array]]:
    """One step on these examples."""
    batch = jax.tree.map(lambda a: a[rows], data)
    batch = jax.lax.with_sharding_constraint(batch, sharding.over_batch(program.mesh))
    return train_step(state, batch, rate_factor=rate_factor, **program.parts)


@functools.partial(jax.jit, static_argnames="program")
def evaluate(
    params: Params, data: Batch, readout: Params = (), *, program: Program
) -> dict[str, Array]:
    """Mean loss and accuracy over a whole set, of the readout if the program has one."""

    def one(example: Batch) -> dict[str, Array]:
        batch = jax.tree.map(lambda a: a[None], example)
        if program.readout:
            outputs = program.readout.logits(readout, params, batch.inputs)
            loss = softmax_cross_entropy(outputs, batch.targets)
        else:
            outputs = program.model.apply(params, batch.inputs)
            loss = LOSSES[program.loss](outputs, batch.targets)
        right = metrics.correct(outputs, batch.targets).astype(jnp.float32)
        return {"loss": loss.mean(), "accuracy": right.mean()}

    at_once = max(1, min(_EVAL_EXAMPLES, _EVAL_TARGETS // data.targets[0].size))
    found = jax.lax.map(one, data, batch_size=at_once)
    return jax.tree.map(jnp.mean, found)


@jax.jit
def all_finite(params: Params) -> Bool[Array, ""]:
    """Whether no parameter is infinite or NaN."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


@functools.partial(jax.jit, static_argnames="program")
def measure_sites(state: TrainState, batch: Batch, *, program: Program) -> dict[str, Array]:
    """`metrics.site_metrics` of a state on a batch, or on its views."""
    loss_fn = LOSSES[program.loss]
    key = jax.random.fold_in(state.key, state.step)
    if program.views:
        batch = program.views(key, batch)
    return metrics.site_metrics(
        key, program.model, program.rule, loss_fn, state.params, state.rule_state, batch
    )
