"""Devices and processes: meshes, shardings, and what processes exchange."""
