"""Reading bytes: local and remote files, retries, arrays that are mapped into memory."""
