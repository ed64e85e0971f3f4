"""Tokenizers as programs that run without voken: torch.export and ONNX."""
