"""What every optimizer step shares: optimizers and which codes were used."""
