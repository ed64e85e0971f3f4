"""The training loop of both frameworks and what it reports, locks and watches."""
