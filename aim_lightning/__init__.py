"""AiM with PyTorch Lightning: autoregressive image generation with Mamba-2 (arXiv 2408.12245).

    import aim_lightning

    pipeline = aim_lightning.load("runs/demo_aim/main", device="cuda")  # or AiMPipeline.from_pretrained(...)
    pipeline.grid(pipeline.generate(["sneaker", "bag"], cfg_scale=2.0)).save("samples.png")

`generate` samples codes with a network alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aim_lightning.pipeline import AiMPipeline, load
    from aim_lightning.sampling import generate

__all__ = ["AiMPipeline", "generate", "load"]
_MODULES = {"AiMPipeline": "pipeline", "generate": "sampling", "load": "pipeline"}


def __getattr__(name: str):
    """Import a public name at its first use: the command line must answer --help before torch is loaded."""
    if name not in _MODULES:
        raise AttributeError(f"module 'aim_lightning' has no attribute {name!r}")
    return getattr(import_module(f"aim_lightning.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names too, which are not imported yet (tab completion, help)."""
    return sorted({*globals(), *__all__})
