"""Visual tokenizers and generators in JAX and Flax."""
