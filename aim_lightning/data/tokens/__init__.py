"""Pre-tokenized images: shards of packed records, their readers, writers and checks."""
