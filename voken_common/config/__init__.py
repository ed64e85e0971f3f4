"""Configurations: loading from YAML, renamed keys, origins of values, reference; the sections are in `schema`."""
