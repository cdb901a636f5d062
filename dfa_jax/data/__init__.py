"""Where batches come from: embedded digits, TFDS, arrays of one's own; minibatches by step."""

from dfa_jax.data.arrays import ArrayData as ArrayData
from dfa_jax.data.base import Dataset as Dataset
from dfa_jax.data.base import EpochShuffle as EpochShuffle
from dfa_jax.data.base import ImageArrays as ImageArrays
from dfa_jax.data.base import num_examples as num_examples
from dfa_jax.data.digits import load_digits as load_digits
from dfa_jax.data.gaussian import GaussianTargets as GaussianTargets
from dfa_jax.data.image_stream import ImageStream as ImageStream
from dfa_jax.data.images import ImageData as ImageData
from dfa_jax.data.images import Standardize as Standardize
from dfa_jax.data.markov import MarkovData as MarkovData
from dfa_jax.data.stream import Stream as Stream
from dfa_jax.data.text import TextData as TextData
from dfa_jax.data.tfds import load_tfds as load_tfds
