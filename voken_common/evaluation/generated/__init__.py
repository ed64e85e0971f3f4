"""Generated images measured against a reference: FID, sFID, Inception Score, precision and recall."""
