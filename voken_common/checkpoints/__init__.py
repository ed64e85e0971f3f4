"""Checkpoints of both frameworks: choosing and keeping steps, checksums, weight names, torch pickles, downloads."""
