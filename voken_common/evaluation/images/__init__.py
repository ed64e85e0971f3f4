"""Images through a tokenizer: reconstructing files, and measuring data sets."""
