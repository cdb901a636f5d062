"""What is trained: plain Flax modules that know nothing of learning rules."""

from dfa_jax.models.base import Model as Model
from dfa_jax.models.base import Site as Site
from dfa_jax.models.convnet import ConvNet as ConvNet
from dfa_jax.models.linen import from_linen as from_linen
from dfa_jax.models.local_mixer import LocalMixer as LocalMixer
from dfa_jax.models.maps import LinearMap as LinearMap
from dfa_jax.models.mlp import MLP as MLP
from dfa_jax.models.transformer import Transformer as Transformer
from dfa_jax.models.transformer import credit_sites as credit_sites
