"""Checkpoints of PyTorch runs: written, verified, loaded."""
