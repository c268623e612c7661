"""Pre-tokenized images: shards of packed records."""
