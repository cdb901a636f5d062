"""How signals travel: credit sites and substituted backward passes."""

from dfa_jax.autodiff.feedback import collect as collect
from dfa_jax.autodiff.feedback import project as project
from dfa_jax.autodiff.objective import chain_gradients as chain_gradients
from dfa_jax.autodiff.site_gradients import site_gradients as site_gradients
from dfa_jax.autodiff.sites import activities as activities
