"""Configurations: typed schemas, their loading from YAML files, and schedules."""
