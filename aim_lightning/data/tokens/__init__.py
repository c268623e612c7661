"""Pre-tokenized pictures: shards of packed records."""
