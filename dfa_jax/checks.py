"""Checks for users' own models: what leaks across a site or a local loss, and what a rule costs."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dfa_jax import losses, tree
from dfa_jax.autodiff import sites
from dfa_jax.autodiff.loops import inner_programs
from dfa_jax.autodiff.objective import SHARED, GlobalLoss
from dfa_jax.models.base import Model, float_leaves
from dfa_jax.rules import Backprop, LearningRule, LocalLosses, ObjectiveRule
from dfa_jax.rules.activity_forward_gradient import common_axes
from dfa_jax.rules.functional import estimate as estimate_gradients
from dfa_jax.train import sharding
from dfa_jax.types import Batch, LossFn, Params

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


class Leak(NamedTuple):
    """A parameter at or below `site` whose gradient moves with the parameters above it."""

    site: str
    parameter: str
    change: float


class IsolationReport(NamedTuple):
    """What `check_isolation` found; `str` of it explains the leaks."""

    leaks: tuple[Leak, ...]

    @property
    def isolated(self) -> bool:
        """Whether no error crosses a site."""
        return not self.leaks

    def __str__(self) -> str:
        if self.isolated:
            return "isolated: with errors held fixed, no gradient moves with parameters above it"
        lines = [
            f"  {leak.parameter} is reached around site '{leak.site}' (its gradient moves by"
            f" {leak.change:.1%})"
            for leak in self.leaks
        ]
        return "\n".join(
            ["not isolated: a skip connection or a shared weight leads around a site", *lines]
        )


def check_isolation(
    model: Model, params: Params, batch: Batch, *, model_state: Any = ()
) -> IsolationReport:
    """Whether every site stops the error: a test to run on a model of one's own.

    Random errors are held fixed at all sites and at the outputs. For each site, the parameters that
    only lie above it are moved; the gradients at and below it must not move by a single bit. Where
    one does, part of the true error reaches it by a path around the site, and the rule is a mixture
    with backpropagation there. (A weight that is used both below and above, such as a tied
    embedding, shows up too.)

    Args:
        model: the model with its sites.
        params: its parameters, in general position (as drawn, not all zero).
        batch: a few examples.
        model_state: the model's other variables, if it has any.
    """
    bound = model.bind(model_state, key=jax.random.key(0))

    def forward(params):
        outputs, found = sites.activities(bound, params, batch.inputs)
        return float_leaves(outputs), found

    @jax.jit
    def gradients(params, moves, errors):
        return jax.vjp(forward, tree.add(params, moves))[1](errors)[0]

    # NumPy draws and compares: not one small program for each shape.
    outputs, activities = jax.eval_shape(forward, params)
    draw = np.random.default_rng(0)
    error = jax.tree.map(lambda like: _normal(draw, like), outputs)
    sent = {s: _normal(draw, activities[s]) for s in model.sites}
    moves = jax.tree.map(lambda leaf: _normal(draw, leaf), params)
    still = jax.tree.map(np.zeros_like, moves)

    def only(source):
        keep = {site: delta * (site == source) for site, delta in sent.items()}
        mine = jax.tree.map(lambda e: e * (source is None), error)
        return gradients(params, still, (mine, keep))

    reached = [_nonzero(only(source)) for source in (*model.sites, None)]  # None: the outputs
    before = gradients(params, still, (error, sent))
    leaks = []
    for i, site in enumerate(model.sites):
        lower, upper = set().union(*reached[: i + 1]), set().union(*reached[i + 1 :])
        after = gradients(params, _of(moves, upper - lower), (error, sent))
        changes = _changes(before, after)
        leaks += [Leak(site, name, changes[name]) for name in sorted(lower) if changes[name]]
    return IsolationReport(tuple(leaks))


def _normal(draw: np.random.Generator, like: Any) -> np.ndarray:
    """Standard normal numbers of an array's shape and type."""
    return draw.normal(size=like.shape).astype(like.dtype)


def _name(path: Any) -> str:
    return "/".join(str(part.key) for part in path)


def _names(tree: Any) -> dict[str, np.ndarray]:
    """The leaves by name, in double precision, which holds each of their bits."""
    leaves = jax.tree.leaves_with_path(tree)
    return {_name(path): np.asarray(leaf, np.float64) for path, leaf in leaves}


def _nonzero(grads: Params) -> set[str]:
    return {name for name, leaf in _names(grads).items() if np.any(leaf != 0)}


def _of(moves: Any, names: set[str]) -> Any:
    """The moves of the named leaves; zero for the others."""
    return jax.tree.map_with_path(lambda path, leaf: leaf * (_name(path) in names), moves)


def _changes(before: Params, after: Params) -> dict[str, float]:
    """Relative change of each leaf; exactly 0 where no bit moved."""
    later = _names(after)
    return {
        name: float(np.linalg.norm(later[name] - leaf) / np.linalg.norm(leaf))
        if np.any(later[name] != leaf)
        else 0.0
        for name, leaf in _names(before).items()
    }


class LocalityReport(NamedTuple):
    """What `check_locality` found: sites by the term that they should not move as they do."""

    leaks: tuple[tuple[str, str], ...]

    @property
    def is_local(self) -> bool:
        """Whether no tangent reaches the loss of another example, patch, group or block."""
        return not self.leaks

    def __str__(self) -> str:
        if self.is_local:
            return "local: a unit moves the losses alone whose slopes it is told"
        return "\n".join(
            [
                "not local: forward gradients would be biased; examples, positions, patches or"
                " groups mix",
                *(
                    f"  behind site '{site}', seen in the loss '{term}'"
                    for site, term in self.leaks
                ),
            ]
        )


def check_locality(
    model: Model,
    rule: ObjectiveRule | LocalLosses,
    params: Params,
    batch: Batch,
    loss_fn: LossFn,
    *,
    model_state: Any = (),
) -> LocalityReport:
    """Whether a unit moves only those losses whose slopes a forward gradient tells it.

    A random tangent enters at one site, for the first example (and position, if the model says that
    they are independent) and the first patch and group that the site is told apart by; every other
    slope must be exactly zero. With a plain rule it finds models and losses that mix examples.

    Args:
        model: the model with its sites and blocks.
        rule: local losses (if not `greedy`, their blocks are not told apart), or a forward gradient
            of the outputs' loss.
        params: the parameters with heads, as `rule.init` returns them.
        batch: two examples or more.
        loss_fn: the loss.
        model_state: the model's other variables, if it has any.
    """
    model = model.bind(model_state, key=jax.random.key(0))
    objective, augmented = GlobalLoss(loss_fn), model
    if isinstance(rule, LocalLosses):
        if not rule.greedy:  # every unit is told the sum of all slopes
            return LocalityReport(())
        objective = rule.objective(loss_fn, model)
        augmented = objective.with_heads(model, params)
    shapes = sites.activity_shapes(model, params, batch.inputs)
    zeros = {site: np.zeros(a.shape, a.dtype) for site, a in shapes.items()}
    draw = np.random.default_rng(0)

    def losses(perturbations):
        orders = sites.at_sites(model, "perturb", perturbations)
        return objective(augmented, params, batch, orders, replicated=True)

    plain = jax.eval_shape(losses, zeros)
    num_batch = plain.example_axes
    slopes_along = jax.jit(lambda u: jax.jvp(lambda p: losses(p).terms, (zeros,), (u,))[1])
    leaks = []
    for site, (term, *_) in objective.site_reach(augmented).items():
        stack = len(model.where[site].stack)
        places = plain.terms[term.term].shape[term.num_stack + num_batch :]
        features = zeros[site].shape[stack + model.batch_axes :]
        shared = common_axes(places, features[:-1]) if term.is_own else 0
        example, own = (0,) * num_batch, (0,) * shared  # and patch and group if told apart
        positions = (slice(None),) * (model.batch_axes - num_batch if shared else 0)
        here = (slice(None),) * stack + example + positions + own
        seen = (slice(None),) * term.num_stack + example + own
        u = zeros[site].copy()
        u[here] = _normal(draw, u[here])
        slopes = {t: np.array(slope) for t, slope in slopes_along(zeros | {site: u}).items()}
        slopes[term.term][seen] = 0
        slopes.pop(SHARED, None)  # told to all
        leaks += [(site, name) for name, slope in slopes.items() if np.any(slope != 0)]
    return LocalityReport(tuple(leaks))


class Cost(NamedTuple):
    """What one gradient estimate costs.

    Attributes:
        matmul_flops: two for each multiply-add of every matrix product and convolution, counted
            from the traced program, loops times their length; over all devices.
        xla_flops: what the compiler reports for one device; a loop's body counts once.
        temporary_bytes: the compiler's temporary buffers on one device.
        collectives: how many operations between devices the compiled program has, by kind.
    """

    matmul_flops: int
    xla_flops: float
    temporary_bytes: int
    collectives: dict[str, int]


class CostReport(NamedTuple):
    """Costs by rule; `str` of it is a table of each against backpropagation."""

    costs: dict[str, Cost]

    def __str__(self) -> str:
        base = self.costs["backprop"]
        lines = [
            f"{'rule':<34}{'matmul FLOPs':>16}{'/ BP':>7}{'temporary MB':>14}{'/ BP':>7}"
            "  collectives"
        ]
        for name, cost in self.costs.items():
            flops = cost.matmul_flops / base.matmul_flops
            memory = cost.temporary_bytes / max(base.temporary_bytes, 1)
            kinds = (
                ", ".join(f"{count} {kind}" for kind, count in cost.collectives.items()) or "none"
            )
            lines.append(
                f"{name:<34}{cost.matmul_flops:>16,}{flops:>7.3f}"
                f"{cost.temporary_bytes / 1e6:>14.2f}{memory:>7.2f}  {kinds}"
            )
        return "\n".join(lines)


def cost_report(
    model: Model,
    rules: Mapping[str, LearningRule],
    mesh: Mesh,
    *,
    params: Params,
    batch: Batch,
    loss_fn: LossFn = losses.softmax_cross_entropy,
    model_state: Any = (),
) -> CostReport:
    """FLOPs, temporary memory and collectives of each rule's gradient estimate, with BP's first.

    Nothing runs: the programs are traced and compiled for the mesh, the batch split over its `data`
    axis and each layer's width over `model`. `params`, `batch` and `model_state` may be abstract.
    """
    with_bp = {"backprop": Backprop(), **rules}
    return CostReport(
        {
            name: estimate_cost(
                model,
                rule,
                mesh,
                params=params,
                batch=batch,
                loss_fn=loss_fn,
                model_state=model_state,
            )
            for name, rule in with_bp.items()
        }
    )


def estimate_cost(
    model: Model,
    rule: LearningRule,
    mesh: Mesh,
    *,
    params: Params,
    batch: Batch,
    loss_fn: LossFn = losses.softmax_cross_entropy,
    model_state: Any = (),
) -> Cost:
    """The cost of one rule's gradient estimate on a mesh."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, rule_state = jax.eval_shape(
        lambda key, params, state, batch: rule.init(key, model.bind(state), params, batch),
        key,
        params,
        model_state,
        batch,
    )

    def estimate(key, params, rule_state, model_state, batch):
        with sharding.known(mesh):
            given = (params, rule_state, model_state, batch, key)
            found = estimate_gradients(rule, model, loss_fn, *given)
        return found.loss, found.grads, found.rule_state

    over_batch = jax.tree.map(lambda _: sharding.over_batch(mesh), batch)
    arguments = (
        sharding.placed(key, sharding.replicated(mesh)),
        sharding.placed(params, sharding.state_shardings(mesh, params)),
        sharding.placed(rule_state, sharding.state_shardings(mesh, rule_state)),
        sharding.placed(model_state, sharding.state_shardings(mesh, model_state)),
        sharding.placed(batch, over_batch),
    )
    compiled = jax.jit(estimate).lower(*arguments).compile()
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return Cost(
        matmul_flops=matmul_flops(jax.make_jaxpr(estimate)(*arguments)),
        xla_flops=(analysis or {}).get("flops", math.nan),
        temporary_bytes=memory.temp_size_in_bytes if memory else 0,
        collectives=count_collectives(compiled.as_text() or ""),
    )


def count_collectives(program: str) -> dict[str, int]:
    """Operations between devices in a compiled program's text, by kind.

    >>> count_collectives("a = f32[2] all-reduce(b), x\\nc = f32[2] add(a, a)")
    {'all-reduce': 1}
    """
    pattern = rf" ({'|'.join(COLLECTIVES)})(?:-start)?\("
    return dict(Counter(re.findall(pattern, program)))


def matmul_flops(jaxpr: Any) -> int:
    """FLOPs of all matrix products and convolutions in a traced program.

    A scan counts every turn, and of branches the one with the most, as one alone is taken.

    >>> matmul_flops(jax.make_jaxpr(jax.numpy.dot)(np.ones((2, 3)), np.ones((3, 5))))
    60
    """
    total = 0
    for equation in jaxpr.eqns:
        kind = equation.primitive.name
        if kind == "dot_general":
            (left_axes, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = math.prod(left[axis] for axis in left_axes)
            total += 2 * depth * equation.outvars[0].aval.size
        elif kind == "conv_general_dilated":
            total += 2 * _convolution_products(equation)
        else:
            inner = [matmul_flops(part) for part in inner_programs(equation.params.values())]
            turns = equation.params["length"] if kind == "scan" else 1
            total += turns * (max(inner) if kind == "cond" else sum(inner))
    return total


def _convolution_products(equation: Any) -> int:
    """Multiplications of a convolution: each output takes a kernel's worth, padding included."""
    kernel = equation.invars[1].aval
    outputs = equation.params["dimension_numbers"].rhs_spec[0]
    return equation.outvars[0].aval.size * (kernel.size // kernel.shape[outputs])
