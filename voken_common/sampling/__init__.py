"""Requests for samples, and the files that hold them."""
