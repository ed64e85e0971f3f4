"""Common part of the public `Tokenizer` and `Generator` of both frameworks: inputs, outputs, summaries."""
