"""What the public `Tokenizer` and `Generator` of both frameworks share: what they take, and what they give."""
