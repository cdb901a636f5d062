"""The eleven algorithms that Ren et al. (2023) compare, by their names."""

import functools

from dfa_jax.autodiff.forward import Noise
from dfa_jax.rules.activity_forward_gradient import ActivityForwardGradient, Sharing
from dfa_jax.rules.backprop import Backprop
from dfa_jax.rules.base import LearningRule
from dfa_jax.rules.direct_feedback_alignment import DirectFeedbackAlignment
from dfa_jax.rules.feedback_alignment import FeedbackAlignment
from dfa_jax.rules.local_losses import LocalLosses
from dfa_jax.rules.weight_forward_gradient import WeightForwardGradient


def local_algorithms(
    num_groups: int, *, noise: Noise = "gaussian", sharing: Sharing = "none"
) -> dict[str, LearningRule]:
    """BP, FA, DFA and forward gradients (FG), with local losses (L-), and cut blocks (LG-).

    FG-W perturbs weights, FG-A activities, where a ReLU follows every site. The forward gradients
    with local losses have one loss a block, patch and group. The published code's "DFA" sends each
    layer the error of a random classifier on that layer; here it is the direct feedback of the
    output error.

    Args:
        num_groups: equal groups of channels with a loss each.
        noise: distribution of perturbations.
        sharing: which examples share perturbations of activities.

    Source: arXiv 2210.03310, table 3.

    >>> list(local_algorithms(4))[-2:]
    ['LG-FG-W', 'LG-FG-A']
    """
    weights = WeightForwardGradient(noise=noise)
    activities = ActivityForwardGradient(noise=noise, sharing=sharing, relu_mask=True)
    everywhere = functools.partial(LocalLosses, patchwise=True, num_groups=num_groups)
    return {
        "BP": Backprop(),
        "L-BP": LocalLosses(Backprop(), greedy=False),
        "LG-BP": LocalLosses(Backprop()),
        "FA": FeedbackAlignment(),
        "L-FA": LocalLosses(FeedbackAlignment(), greedy=False),
        "LG-FA": LocalLosses(FeedbackAlignment()),
        "DFA": DirectFeedbackAlignment(),
        "FG-W": weights,
        "FG-A": activities,
        "LG-FG-W": everywhere(weights),
        "LG-FG-A": everywhere(activities),
    }
