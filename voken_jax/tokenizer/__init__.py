"""The tokenizer: public API, losses, state, step, validation."""
