"""Published checkpoints by name: finding and downloading them, and converting what needs it once."""
