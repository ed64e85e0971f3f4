"""What the quickstart measures and shows: held-out crops, a k-means baseline on the same crops, one table."""
