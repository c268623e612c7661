"""Layout of token shards on disk."""
