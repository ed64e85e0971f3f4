"""Ascend NPU, CUDA and CPU: the only room that knows which of them it is."""
