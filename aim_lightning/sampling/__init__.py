"""Sampling of codes from an autoregressive network."""

from aim_lightning.sampling.fast import release_decoders
from aim_lightning.sampling.generate import generate, out_of_memory
from aim_lightning.sampling.options import SamplingOptions, image_bytes, resolve, with_sampling_options

__all__ = [
    "SamplingOptions", "generate", "image_bytes", "out_of_memory", "release_decoders", "resolve",
    "with_sampling_options",
]  # fmt: skip
