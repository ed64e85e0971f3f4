"""The published models and what is known about them."""
