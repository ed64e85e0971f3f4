"""Contents of checkpoints in every format: PyTorch Lightning, voken's own torch files, and safetensors.

Everything is NumPy arrays under torch names and in torch layout; nothing here imports a framework.
"""
