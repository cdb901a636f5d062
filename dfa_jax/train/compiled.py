"""The compiled functions of the loop: draw a state, take many steps, evaluate, measure."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dfa_jax import metrics
from dfa_jax.autodiff import loss as losses
from dfa_jax.autodiff.loops import loop_body
from dfa_jax.data.base import num_examples
from dfa_jax.train import sharding
from dfa_jax.train.program import Program
from dfa_jax.train.state import TrainState, init_state
from dfa_jax.train.step import train_step
from dfa_jax.types import Batch, Params, PRNGKey


@functools.partial(jax.jit, static_argnames="program")
def draw_state(
    key: PRNGKey, feedback_key: PRNGKey | None, batch: Batch, *, program: Program
) -> TrainState:
    """`init_state` on the devices where the state stays; one compilation serves every seed."""
    state = init_state(key, batch, feedback_key=feedback_key, **program.initial_parts)
    return _stays(state, program)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def run_steps(
    state: TrainState,
    data: Batch,
    order: Int[Array, "most batch"] | None,
    num_steps: int | Int[Array, ""],
    rate_factors: Float[Array, " most"] | None = None,
    *,
    program: Program,
) -> tuple[TrainState, dict[str, Array]]:
    """The first `num_steps` rows of `order` as steps; loss and metrics of each, zeros behind them.

    Without an order, `data` has the steps in front, `[most, batch, ...]`. The learning rate of each
    step is multiplied by its factor, if there are any.
    """
    most = num_examples(data) if order is None else len(order)

    def one(i, carry):
        state, noted = carry
        factor = None if rate_factors is None else rate_factors[i]
        rows = i if order is None else order[i]
        state, found = _step(state, data, rows, factor, program)
        return state, _noted(noted, i, found)

    nothing = _nothing(program, most)
    state, noted = jax.lax.fori_loop(0, num_steps, loop_body(one), (state, nothing))
    return _stays(state, program), _everywhere(noted, program)


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
    begin = (stacked, _nothing(program, len(order), number))
    stacked, noted = jax.lax.fori_loop(0, num_steps, loop_body(one), begin)
    apart = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(number)]
    own = [jax.tree.map(lambda leaf, i=i: leaf[:, i], noted) for i in range(number)]
    return (
        tuple(_stays(state, program) for state in apart),
        tuple(_everywhere(one, program) for one in own),
    )


def _stays(state: TrainState, program: Program) -> TrainState:
    """The state on the devices where it belongs."""
    shardings = sharding.state_shardings(program.mesh, state)
    return jax.lax.with_sharding_constraint(state, shardings)


def _everywhere(found: dict[str, Array], program: Program) -> dict[str, Array]:
    """Numbers on every device, where every process can fetch them."""
    return jax.lax.with_sharding_constraint(found, sharding.replicated(program.mesh))


def _nothing(program: Program, *shape: int) -> dict[str, Array]:
    """Where metrics are noted, step by step."""
    return {name: jnp.zeros(shape) for name in program.metric_names}


def _noted(noted: dict[str, Array], i: Array, found: dict[str, Array]) -> dict[str, Array]:
    return jax.tree.map(lambda all, one: all.at[i].set(one), noted, found)


def _step(
    state: TrainState,
    data: Batch,
    rows: Int[Array, " batch"] | Int[Array, ""],
    rate_factor: Float[Array, ""] | None,
    program: Program,
) -> tuple[TrainState, dict[str, Array]]:
    """One step on these examples, or those of this step."""
    batch = jax.tree.map(lambda a: a[rows], data)
    batch = jax.lax.with_sharding_constraint(batch, sharding.over_batch(program.mesh))
    gather = functools.partial(sharding.gathered, program.mesh)
    parts = {"rate_factor": rate_factor, "gather": gather, **program.parts}
    with sharding.known(program.mesh):
        state, found = train_step(state, batch, **parts)
    return _stays(state, program), found


@functools.partial(jax.jit, static_argnames="program")
def weight_of(
    params: Params, model_state: Any, batch: Batch, *, program: Program
) -> Float[Array, ""]:
    """Sum of the loss's weights on a batch; what it does not depend on is not computed."""
    outputs = program.model.apply(
        params, batch.inputs, state=model_state, key=program.evaluation_key
    )
    found = losses.as_loss(program.loss_fn(outputs, batch.targets))
    everywhere = sharding.replicated(program.mesh)
    return jax.lax.with_sharding_constraint(losses.total_weight(found), everywhere)


@functools.partial(jax.jit, static_argnames="program")
def all_finite(params: Params, *, program: Program) -> Bool[Array, ""]:
    """Whether no parameter is infinite or NaN."""
    found = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
    return jax.lax.with_sharding_constraint(found, sharding.replicated(program.mesh))


@functools.partial(jax.jit, static_argnames="program")
def measure_sites(state: TrainState, batch: Batch, *, program: Program) -> dict[str, Array]:
    """`metrics.site_metrics` of a state on a batch, or on its views."""
    loss_fn = program.loss_fn
    key = jax.random.fold_in(state.key, state.step)
    if program.views:
        batch = program.views(key, batch)
    params, rule_state = (
        sharding.gathered(program.mesh, tree) for tree in (state.params, state.rule_state)
    )
    found = metrics.site_metrics(
        key, program.model, program.rule, loss_fn, params, rule_state, state.model_state, batch
    )
    return _everywhere(found, program)
