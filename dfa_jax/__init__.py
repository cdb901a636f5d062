"""Train neural networks in JAX and Flax without (all of) backpropagation."""
