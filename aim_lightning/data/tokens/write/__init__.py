"""Writing of token shards."""
