"""A PyTorch run from its configuration to its last step."""
