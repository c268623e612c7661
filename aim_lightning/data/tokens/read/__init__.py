"""Readers of token shards."""
