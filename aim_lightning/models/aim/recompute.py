"""The loop over the blocks of a network of stage 2, with optional activation checkpointing."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

Checkpointing = Literal["none", "blocks", "all"]


def segment_length(mode: Checkpointing, n_layer: int) -> int:
    """Return the number of blocks that are recomputed together: 1, or about sqrt(n_layer) for ``all``."""
    return round(math.sqrt(n_layer)) if mode == "all" else 1


def apply_layers(
    apply: Callable[..., tuple], layers: Iterable[tuple], state: tuple[Any, ...], mode: Checkpointing
) -> tuple[Any, ...]:
    """Apply all layers in turn and return the last state.

    Args:
        apply: maps the state and the items of one layer to the next state.
        layers: the items of each layer, such as the block and its modulation.
        state: the tensors between two layers, or None.
        mode: what the backward pass recomputes. ``none`` = nothing; ``blocks`` = each block from its inputs;
            ``all`` = segments of about sqrt(n_layer) blocks from the inputs of the segment.
    """
    layers = list(layers)
    length = segment_length(mode, len(layers))

    def segment(start: int, *state: Any) -> tuple[Any, ...]:
        for items in layers[start : start + length]:
            state = apply(*state, *items)
        return state

    for start in range(0, len(layers), length):
        if mode == "none" or not torch.is_grad_enabled():
            state = segment(start, *state)
        else:
            # It restores the random state before the recomputation, so that dropout repeats its mask.
            state = checkpoint(segment, start, *state, use_reentrant=False)
    return state
