"""The generator: public API, state, step, sampling, validation."""
