"""Compose one configuration from files and command-line overrides, and check it. Imports no torch by itself."""

from aim_lightning.config.compose import ComposedConfig, compose

__all__ = ["ComposedConfig", "compose"]
