"""Callbacks that keep a training correct and resumable."""
