"""Measuring models over images and data sets, and the reports about it."""
