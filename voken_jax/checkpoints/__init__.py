"""Checkpoints of JAX runs: written, verified, loaded."""
