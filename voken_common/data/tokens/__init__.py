"""Token shards: their format, writing them from images, reading them in training, decoding them."""
