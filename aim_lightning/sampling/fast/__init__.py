"""Fast decoding, bound by memory bandwidth: dual form over stored inputs, static memory, captured graphs."""

from aim_lightning.sampling.fast.buffers import bytes_needed
from aim_lightning.sampling.fast.cache import decoder_for, kept_bytes, obstacle, release_decoders
from aim_lightning.sampling.fast.decoder import FastDecoder

__all__ = ["FastDecoder", "bytes_needed", "decoder_for", "kept_bytes", "obstacle", "release_decoders"]
