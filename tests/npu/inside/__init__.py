"""Tests that use the simulated NPU; tests/npu/test_npu.py runs each file in a process of its own."""
