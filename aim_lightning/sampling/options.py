"""Sampler settings as one value, for configuration files and records."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class SamplingOptions:
    """How images are drawn; see `aim_lightning.sampling.generate`.

    Args:
        cfg_scale: guidance; 1 = none.
        temperature: above 0.
        top_k: codes kept a step; 0 = all, 1 = argmax.
        top_p: probability kept a step; 1 = all.
        seed: of the images' random streams.
        batch_size: images drawn at a time on one device.
        position_offset: 1 = positions of the published decoder.
    """

    cfg_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 256
    position_offset: int = 0

    def options(self) -> dict:
        """Keyword arguments of `AiMPipeline.generate`."""
        return asdict(self)
