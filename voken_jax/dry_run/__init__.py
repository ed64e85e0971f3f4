"""Costs of a training step, computed before it is run."""
