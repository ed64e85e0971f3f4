"""Networks in Flax NNX; attribute names are those of the published state dicts."""
