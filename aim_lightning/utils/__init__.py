"""Helpers for every other package: errors, files, processes, logging, counter-based randomness."""
