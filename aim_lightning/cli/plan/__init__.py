"""Measurement and report of the `plan` command."""
