"""Train neural networks in JAX and Flax without (all of) backpropagation."""

from dfa_jax.autodiff import collect as collect
from dfa_jax.autodiff import site_gradients as site_gradients
from dfa_jax.errors import InputError as InputError
from dfa_jax.errors import SiteError as SiteError
from dfa_jax.models import MLP as MLP
from dfa_jax.models import ConvNet as ConvNet
from dfa_jax.models import Model as Model
from dfa_jax.models import from_linen as from_linen
from dfa_jax.rules import RULES as RULES
from dfa_jax.rules import Backprop as Backprop
