"""What a checkpoint holds, whatever coat it wears: the files of PyTorch Lightning, of PyTorch here, and safetensors.

Everything is NumPy arrays under torch names and in torch layout; nothing here imports a framework.
"""
