"""The typed sections of every configuration: names, types, defaults and meanings of all settings."""
