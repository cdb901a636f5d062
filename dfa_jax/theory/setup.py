"""How a student learns from a teacher: the setting that theory and simulation share."""

import dataclasses
import math
from typing import Any, Literal, get_args

import jax

from dfa_jax.errors import InputError, unknown
from dfa_jax.theory import activations

Rule = Literal["direct_feedback_alignment", "backprop"]
Scalar = Any
"""A number, perhaps traced; libraries also rebuild the dataclass with placeholders for it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TeacherStudent:
    r"""Online gradient descent of a two-layer student on a two-layer teacher's outputs.

    Every step has one fresh input `x ~ N(0, I_D)`, and `y = sum_m A_m g(rho_m) + sigma z`,
    `yhat = sum_k v_k g(lambda_k)`, `e = y - yhat`:

        w_k <- w_k + (eta / sqrt D) F_k g'(lambda_k) e x - (eta kappa / D) w_k
        v_k <- v_k + (eta_v / D) g(lambda_k) e           - (eta_v kappa / D) v_k

    with the fixed feedback `F` under direct feedback alignment; backpropagation has `v` in its
    place. Time is `t = steps / D`. Numbers may be traced: differentiate by them, or `vmap`.

    Attributes:
        activation: `g`: `erf` (that is erf(x / sqrt 2)), `linear` or `relu`, of both networks.
        rule: where the first layer's error comes from.
        learning_rate: `eta`, of the first layer.
        second_learning_rate: `eta_v`, of the second; 0 fixes it.
        label_noise: `sigma`.
        weight_decay: `kappa`, of both layers.

    Source: Refinetti et al. (2021), arXiv 2011.12428; with `F = v`, Goldt et al. (2019), arXiv
    1906.08632.
    """

    activation: str = dataclasses.field(default="erf", metadata={"static": True})
    rule: str = dataclasses.field(default="direct_feedback_alignment", metadata={"static": True})
    learning_rate: Scalar = 0.1
    second_learning_rate: Scalar = 0.1
    label_noise: Scalar = 0.0
    weight_decay: Scalar = 0.0

    def __post_init__(self):
        activations.get(self.activation)
        if self.rule not in get_args(Rule):
            raise InputError(unknown("rule", self.rule, get_args(Rule)))
        for name in ("learning_rate", "second_learning_rate", "label_noise", "weight_decay"):
            value = getattr(self, name)
            if isinstance(value, float | int) and not (value >= 0 and math.isfinite(value)):
                raise InputError(f"{name} is {value}; expected a finite number of at least 0")
