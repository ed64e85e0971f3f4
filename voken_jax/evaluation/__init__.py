"""The networks of metrics at work: NumPy arrays in and out."""
