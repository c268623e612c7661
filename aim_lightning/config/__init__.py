"""From configuration files and command-line overrides to one checked document, without importing torch."""

from aim_lightning.config.compose import ComposedConfig, compose

__all__ = ["ComposedConfig", "compose"]
