"""Writers of token shards."""
