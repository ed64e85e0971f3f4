"""A JAX run from its configuration to its last step."""
