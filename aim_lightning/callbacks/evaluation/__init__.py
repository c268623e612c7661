"""Callbacks that score images during training and validation."""
