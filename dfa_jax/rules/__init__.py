"""Learning rules, one file each. A new rule is a new file and one line in `RULES`."""

from dfa_jax.rules.activity_forward_gradient import (
    ActivityForwardGradient as ActivityForwardGradient,
)
from dfa_jax.rules.algorithms import local_algorithms as local_algorithms
from dfa_jax.rules.backprop import Backprop as Backprop
from dfa_jax.rules.base import ChainRule as ChainRule
from dfa_jax.rules.base import GradEstimate as GradEstimate
from dfa_jax.rules.base import LearningRule as LearningRule
from dfa_jax.rules.base import ObjectiveRule as ObjectiveRule
from dfa_jax.rules.base import SiteRule as SiteRule
from dfa_jax.rules.batchwise_random_sign import BatchwiseRandomSign as BatchwiseRandomSign
from dfa_jax.rules.direct_feedback_alignment import (
    DirectFeedbackAlignment as DirectFeedbackAlignment,
)
from dfa_jax.rules.direct_random_target_projection import (
    DirectRandomTargetProjection as DirectRandomTargetProjection,
)
from dfa_jax.rules.feedback_alignment import FeedbackAlignment as FeedbackAlignment
from dfa_jax.rules.fixed_random_sign import FixedRandomSign as FixedRandomSign
from dfa_jax.rules.functional import Aux as Aux
from dfa_jax.rules.functional import Variables as Variables
from dfa_jax.rules.functional import init as init
from dfa_jax.rules.functional import value_and_grad as value_and_grad
from dfa_jax.rules.gradient_guess import GradientGuess as GradientGuess
from dfa_jax.rules.kolen_pollack import KolenPollack as KolenPollack
from dfa_jax.rules.local_losses import LocalLosses as LocalLosses
from dfa_jax.rules.shallow import Shallow as Shallow
from dfa_jax.rules.uniform_sign import UniformSign as UniformSign
from dfa_jax.rules.weight_forward_gradient import WeightForwardGradient as WeightForwardGradient

RULES: dict[str, type[LearningRule]] = {
    "backprop": Backprop,
    "shallow": Shallow,
    "direct_feedback_alignment": DirectFeedbackAlignment,
    "direct_random_target_projection": DirectRandomTargetProjection,
    "feedback_alignment": FeedbackAlignment,
    "uniform_sign": UniformSign,
    "fixed_random_sign": FixedRandomSign,
    "batchwise_random_sign": BatchwiseRandomSign,
    "kolen_pollack": KolenPollack,
    "local_losses": LocalLosses,
    "weight_forward_gradient": WeightForwardGradient,
    "activity_forward_gradient": ActivityForwardGradient,
    "gradient_guess": GradientGuess,
}
"""The registry: command line, configurations, conformance tests and docs all read it."""
