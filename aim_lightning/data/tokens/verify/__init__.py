"""Checks and previews of token shards."""
