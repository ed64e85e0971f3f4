"""What the JAX and the PyTorch packages of voken share. Imports neither jax nor torch."""
