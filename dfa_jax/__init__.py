"""Train neural networks in JAX and Flax without (all of) backpropagation."""

from dfa_jax.autodiff import collect, site_gradients
from dfa_jax.checks import check_isolation, check_locality, cost_report
from dfa_jax.errors import DivergedError, InputError, SiteError
from dfa_jax.models import MLP, ConvNet, LocalMixer, Model, from_linen
from dfa_jax.rules import (
    RULES,
    ActivityForwardGradient,
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
    LocalLosses,
    ObjectiveRule,
    Shallow,
    SiteRule,
    UniformSign,
    WeightForwardGradient,
)
from dfa_jax.train import TrainConfig, TrainState, fit, init_state, train_step
from dfa_jax.types import Batch

__all__ = [
    "MLP",
    "RULES",
    "ActivityForwardGradient",
    "Backprop",
    "Batch",
    "BatchwiseRandomSign",
    "ChainRule",
    "ConvNet",
    "DirectFeedbackAlignment",
    "DirectRandomTargetProjection",
    "DivergedError",
    "FeedbackAlignment",
    "FixedRandomSign",
    "GradEstimate",
    "InputError",
    "KolenPollack",
    "LearningRule",
    "LocalLosses",
    "LocalMixer",
    "Model",
    "ObjectiveRule",
    "Shallow",
    "SiteError",
    "SiteRule",
    "TrainConfig",
    "TrainState",
    "UniformSign",
    "WeightForwardGradient",
    "check_isolation",
    "check_locality",
    "collect",
    "cost_report",
    "fit",
    "from_linen",
    "init_state",
    "site_gradients",
    "train_step",
]
