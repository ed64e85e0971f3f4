"""The converter's side of JAX: which weights a configuration has, steps of Orbax, and the bridge to PyTorch."""
