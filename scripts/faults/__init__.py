"""The faults of scripts/fault_matrix.py."""
