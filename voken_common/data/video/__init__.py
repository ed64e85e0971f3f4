"""Videos as streams: frames in and out one window at a time, windows and tiles that a tokenizer can take."""
