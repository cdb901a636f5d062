"""Optimiser and schedule configuration, built by Optax."""

import dataclasses
import fnmatch
import functools
import math
from collections.abc import Collection
from typing import Any, Literal

import jax
import optax

from dfa_jax.errors import InputError, check_choices, unknown
from dfa_jax.tree import Path

_Name = Literal["sgd", "adam", "rmsprop", "lars"]
_Schedule = Literal["constant", "cosine", "linear", "staircase"]
_Decay = Literal["decoupled", "coupled"]
_DECAYED = ("kernel", "embedding", "feedback")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """First-order optimiser, learning-rate schedule and weight decay.

    Attributes:
        name: `sgd` (with `momentum`), `adam` (AdamW, with `weight_decay`), `rmsprop`, or `lars`
            (with `momentum`; You et al., 2017, arXiv 1708.03888), whose trust ratio is of what
            decays only.
        learning_rate: peak rate, per step.
        momentum: of `sgd` and `lars`.
        b1: decay of Adam's first moment.
        b2: decay of Adam's second moment and of RMSprop's.
        eps: added to the root of the second moment.
        weight_decay: of kernels, embeddings and learned feedback only, never of biases, scales or
            fixed feedback.
        decay: `decoupled`: the decay times the learning rate; or `coupled`: it is part of the
            gradient (an L2 penalty), as always under `lars`.
        readout_factor: multiplies the rate of what lies above the last site and block.
        frozen: parameters that stay as they were drawn: patterns over their paths, part by part;
            `block_*` is everything inside the blocks.
        clip_norm: global norm above which gradients are scaled down; none if 0.
        schedule: `constant`, `cosine` to zero, `linear` to zero, or `staircase` (a tenth from half
            of the steps on, a hundredth from four fifths on), after the warm-up.
        warmup_fraction: fraction of all steps over which the rate rises linearly from zero.
    """

    name: _Name = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay: _Decay = "decoupled"
    readout_factor: float = 1.0
    frozen: tuple[str, ...] = ()
    clip_norm: float = 0.0
    schedule: _Schedule = "constant"
    warmup_fraction: float = 0.0

    def __post_init__(self):
        check_choices(self, "optimizer.")
        for name in ("momentum", "b1", "b2", "warmup_fraction"):
            _check(name, getattr(self, name), "in [0, 1)", lambda x: 0 <= x < 1)
        for name in ("weight_decay", "clip_norm"):
            _check(name, getattr(self, name), ">= 0", lambda x: x >= 0)
        for name in ("learning_rate", "eps", "readout_factor"):
            _check(name, getattr(self, name), "positive", lambda x: x > 0)

    def rate(self, num_steps: int) -> optax.Schedule:
        """Learning rate by step, over `num_steps` steps."""
        warmup = round(self.warmup_fraction * num_steps)
        rest = max(num_steps - warmup, 1)
        after = {
            "constant": optax.constant_schedule(self.learning_rate),
            "cosine": optax.cosine_decay_schedule(self.learning_rate, rest),
            "linear": optax.linear_schedule(self.learning_rate, 0.0, rest),
            "staircase": optax.piecewise_constant_schedule(
                self.learning_rate, {math.ceil(0.5 * rest): 0.1, math.ceil(0.8 * rest): 0.1}
            ),
        }[self.schedule]
        rise = optax.linear_schedule(0.0, self.learning_rate, max(warmup, 1))
        return optax.join_schedules([rise, after], [warmup])

    def build(self, num_steps: int, readout: Collection[Path] = ()) -> optax.GradientTransformation:
        """The Optax transformation for a run of `num_steps` steps.

        Args:
            num_steps: of the run.
            readout: paths of the submodules whose rate `readout_factor` multiplies, as
                `Model.readout`.
        """
        tx = self._build(num_steps)
        if self.readout_factor != 1:
            chosen = functools.partial(_inside, readout)
            tx = optax.chain(tx, optax.masked(optax.scale(self.readout_factor), chosen))
        if self.frozen:  # before all else: a clipped norm is that of what moves
            tx = optax.chain(
                optax.masked(tx, lambda params: _frozen(params, self.frozen, moves=True)),
                optax.masked(optax.set_to_zero(), lambda params: _frozen(params, self.frozen)),
            )
        return tx

    def _build(self, num_steps: int) -> optax.GradientTransformation:
        rate = self.rate(num_steps)
        clip = optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
        if self.name == "lars":
            lars = optax.lars(
                rate, self.weight_decay, decayed, trust_ratio_mask=decayed, momentum=self.momentum
            )
            return optax.chain(clip, lars)
        scale = {
            "sgd": optax.trace(self.momentum) if self.momentum else optax.identity(),
            "adam": optax.scale_by_adam(self.b1, self.b2, self.eps),
            "rmsprop": optax.scale_by_rms(self.b2, self.eps),
        }[self.name]
        decay = optax.identity()
        if self.weight_decay:
            decay = optax.add_decayed_weights(self.weight_decay, decayed)
        inner = (decay, scale) if self.decay == "coupled" else (scale, decay)
        return optax.chain(clip, *inner, optax.scale_by_learning_rate(rate))


def decayed(params: Any) -> Any:
    """Which parameters weight decay applies to, by the last part of their path."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key in _DECAYED, params)


def _frozen(params: Any, patterns: Collection[str], *, moves: bool = False) -> Any:
    """Which parameters stay as they are, or which move.

    Raises:
        InputError: a pattern matches none.
    """
    paths = [tuple(part.key for part in path) for path, _ in jax.tree.leaves_with_path(params)]
    for pattern in patterns:
        if not any(begins(path, pattern) for path in paths):
            tops = list(dict.fromkeys(path[0] for path in paths))
            raise InputError(unknown("parameter in optimizer.frozen", pattern, tops))
    still = [any(begins(path, pattern) for pattern in patterns) for path in paths]
    return jax.tree.unflatten(jax.tree.structure(params), [one != moves for one in still])


def begins(path: Path, pattern: str) -> bool:
    """Whether the first parts of a path match those of a pattern of `Optimizer.frozen`."""
    wanted = pattern.split("/")
    return len(wanted) <= len(path) and all(map(fnmatch.fnmatchcase, path, wanted))


def _inside(modules: Collection[Path], params: Any) -> Any:
    """Which parameters are those of one of the submodules."""
    return jax.tree.map_with_path(
        lambda path, _: tuple(part.key for part in path[:-1]) in modules, params
    )


def _check(name: str, value: float, expected: str, holds: Any) -> None:
    if not (math.isfinite(value) and holds(value)):
        raise InputError(f"optimizer.{name} is {value}; expected a finite number {expected}")
