"""Visual tokenizers and generators in PyTorch, for Ascend NPU, CUDA and CPU; the mirror of `voken_jax`."""
