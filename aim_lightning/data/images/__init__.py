"""Images: their sources, shards, transforms and DataModule."""
