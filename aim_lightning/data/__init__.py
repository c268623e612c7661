"""Data: image sources, token shards and the training stream over them."""
