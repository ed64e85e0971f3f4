"""Tars of images: their format, index and checks."""
