"""Data: picture sources, token shards and the training stream over them."""
