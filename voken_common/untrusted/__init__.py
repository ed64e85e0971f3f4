"""Input from strangers: names that become paths, text that becomes messages, files that are opened."""
