"""Common part of the JAX and the PyTorch packages of voken. Imports neither jax nor torch."""
