"""Reading of token shards."""
