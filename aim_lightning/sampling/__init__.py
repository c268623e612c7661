"""Drawing codes from an autoregressive network."""

from aim_lightning.sampling.fast import release_decoders
from aim_lightning.sampling.generate import generate
from aim_lightning.sampling.options import SamplingOptions

__all__ = ["SamplingOptions", "generate", "release_decoders"]
