"""Format of token shards on disk."""
