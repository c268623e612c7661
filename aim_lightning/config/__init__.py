"""Compose one configuration from files and command-line overrides, and check it. Imports no torch by itself."""
