"""Estimate the memory of a training step, and choose the micro-batch that fits, by plain arithmetic."""

import math

from aim_lightning.models.aim.aim_config import AiMConfig
from aim_lightning.models.aim.recompute import Checkpointing, segment_length

# Activations of a layer relative to those that the triton backend keeps. Fitted to the peaks of AiM-B on an H200:
# 8.6 and 27.3 GiB at 64 and 256 images (triton), 42 GiB at 256 (mamba_ssm), 50 GiB at 64 (torch).
LAYER_FACTORS = {"triton": 1.0, "mamba_ssm": 1.2, "torch": 7.3}
WORKING_LAYERS = 1.65  # working memory of the backward pass, in layers of kept activations
BYTES_PER_LOGIT = 10  # float32 log-probabilities and their gradient, and the gradient in bfloat16
BYTES_PER_PARAMETER = 20  # float32 weights, gradients, AdamW's two moments, EMA; less without EMA
USABLE = 0.9  # share of the device's memory; the rest is for the CUDA context, libraries and fragmentation
LARGEST = 256  # the largest micro-batch that was measured


def bytes_per_image(
    config: AiMConfig, backend: str = "triton", checkpointing: Checkpointing = "none", item_size: int = 2
) -> int:
    """Return the bytes of activations of one image at the peak of a training step.

    Args:
        config: sizes of the network.
        backend: name of the backend that trains.
        checkpointing: activations that the backward pass recomputes.
        item_size: bytes of a number in matrix products; the residual stream is float32 always.
    """
    d, inner = config.d_model, config.d_inner
    projected = inner + config.conv_dim + config.nheads
    # A layer keeps the residual, its normed input, the output of both projections, the gated scan and two numbers.
    boundary = 4 * d + item_size * d
    row = boundary + item_size * (d + projected + inner) + 8
    if config.d_intermediate:
        row += boundary + item_size * (d + 4 * config.d_intermediate)
    length = config.n_layer if checkpointing == "none" else segment_length(checkpointing, config.n_layer)
    segments = 0 if checkpointing == "none" else math.ceil(config.n_layer / length)
    rows = segments * boundary + (length + WORKING_LAYERS) * LAYER_FACTORS[backend] * row
    # The triton backend computes the loss in chunks.
    logits = 0 if backend == "triton" else BYTES_PER_LOGIT * config.vocab_size
    return math.ceil(config.num_tokens * (rows + logits))


def fitting_micro_batch(share: int, image_bytes: int, parameters: int, device_bytes: int) -> int:
    """Return the largest micro-batch that divides the share of a rank and fits; 1 where nothing fits.

    Args:
        share: images of a global batch per rank.
        image_bytes: result of `bytes_per_image`.
        parameters: number of trained parameters.
        device_bytes: memory of the device.
    """
    fitting = max(int((USABLE * device_bytes - BYTES_PER_PARAMETER * parameters) // image_bytes), 1)
    return largest_divisor(share, min(1 << fitting.bit_length() - 1, LARGEST))


def largest_divisor(share: int, limit: int) -> int:
    """Return the largest divisor of `share` up to `limit`, both 1 or more."""
    return max(size for size in range(1, min(limit, share) + 1) if share % size == 0)
