"""Image sources, transforms and the Grain pipeline. Imports neither jax nor torch."""
