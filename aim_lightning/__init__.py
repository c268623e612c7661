"""AiM with PyTorch Lightning: autoregressive image generation with Mamba-2 (arXiv 2408.12245)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aim_lightning.pipeline import AiMPipeline, load

__all__ = ["AiMPipeline", "load"]


def __getattr__(name: str):
    """Import on first use: the command line must answer --help before torch is loaded."""
    if name == "AiMPipeline":
        from aim_lightning.pipeline import AiMPipeline

        return AiMPipeline
    if name == "load":
        from aim_lightning.pipeline import load

        return load
    raise AttributeError(f"module 'aim_lightning' has no attribute {name!r}")
