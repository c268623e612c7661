"""Checkpoint files: format, checksums, reading and writing."""
