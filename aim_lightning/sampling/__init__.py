"""Drawing codes from an autoregressive network."""

from aim_lightning.sampling.fast import release_decoders
from aim_lightning.sampling.generate import generate, out_of_memory
from aim_lightning.sampling.options import SamplingOptions
from aim_lightning.sampling.resolve import image_bytes, resolve

__all__ = ["SamplingOptions", "generate", "image_bytes", "out_of_memory", "release_decoders", "resolve"]
