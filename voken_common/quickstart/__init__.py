"""Measures and pictures of the quickstart: held-out crops, a k-means baseline on the same crops, one table."""
