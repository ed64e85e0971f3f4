"""Common parts of every optimizer step: optimizers, and the codes that were used."""
