"""The first weights of the tiny tokenizer; `scripts/train_tiny.py` trains them."""
