"""Tokenizers as programs that run without voken: StableHLO by jax.export."""
