"""Train neural networks in JAX and Flax without (all of) backpropagation."""

from dfa_jax.autodiff import collect, site_gradients
from dfa_jax.checks import check_isolation, cost_report
from dfa_jax.errors import InputError, SiteError
from dfa_jax.models import MLP, ConvNet, Model, from_linen
from dfa_jax.rules import (
    RULES,
    Backprop,
    BatchwiseRandomSign,
    ChainRule,
    DirectFeedbackAlignment,
    DirectRandomTargetProjection,
    FeedbackAlignment,
    FixedRandomSign,
    GradEstimate,
    KolenPollack,
    LearningRule,
    Shallow,
    SiteRule,
    UniformSign,
)
from dfa_jax.train import TrainConfig, TrainState, fit, init_state, train_step
from dfa_jax.types import Batch

__all__ = [
    "MLP",
    "RULES",
    "Backprop",
    "Batch",
    "BatchwiseRandomSign",
    "ChainRule",
    "ConvNet",
    "DirectFeedbackAlignment",
    "DirectRandomTargetProjection",
    "FeedbackAlignment",
    "FixedRandomSign",
    "GradEstimate",
    "InputError",
    "KolenPollack",
    "LearningRule",
    "Model",
    "Shallow",
    "SiteError",
    "SiteRule",
    "TrainConfig",
    "TrainState",
    "UniformSign",
    "check_isolation",
    "collect",
    "cost_report",
    "fit",
    "from_linen",
    "init_state",
    "site_gradients",
    "train_step",
]
