"""Load networks strictly from any source of weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aim_lightning.checkpoint.io import load_weights
from aim_lightning.models import AiM, VQConfig, VQModel
from aim_lightning.models.vq.model import USAGE_RECORD
from aim_lightning.weights.infer_config import aim_config, vq_config
from aim_lightning.weights.source import Source, read_source


def import_aim(
    source: str | Path | Mapping[str, Any] | Source,
    *,
    raw: bool = False,
    num_tokens: int | None = None,
    backend: str = "auto",
) -> AiM:
    """Load the AiM of any source, in evaluation mode, float32 and on the CPU.

    Args:
        source: see `aim_lightning.weights.read_source`; a tokenizer in it is ignored.
        raw: load the trained weights where the source has averaged ones too.
        num_tokens: codes per image, for sources with neither position embedding nor configuration.
        backend: of the network (see `AiM`), independent of the source.

    Raises:
        UserError: a missing, damaged or foreign file; missing, surplus or misshapen names, all in one line; a head
            that differs from the word embedding it is tied to; an argument that contradicts the source; an
            unavailable backend.
    """
    source = read_source(source, raw=raw)
    # Built from the inferred configuration, then loaded strictly: no weight stays at its initial value.
    model = AiM(aim_config(source, num_tokens), backend)
    load_weights(model, aim_weights(source), source.name)
    return model.eval()


def import_vq(
    source: str | Path | Mapping[str, Any] | Source,
    *,
    raw: bool = False,
    image_size: int | None = None,
    norm_groups: int | None = None,
) -> VQModel:
    """Load the VQ tokenizer of any source, in evaluation mode, float32 and on the CPU.

    Args:
        source: see `aim_lightning.weights.read_source`; of a published AiM its tokenizer.
        raw: load the trained weights where the source has averaged ones too.
        image_size: height and width of images in pixels; by default the source's, else 256 as published.
        norm_groups: groups of its GroupNorms, for sources without a configuration (32 as published).

    Raises:
        UserError: a missing, damaged or foreign file; missing, surplus or misshapen names, all in one line; an
            argument that contradicts the source.
    """
    source = read_source(source, raw=raw)
    model = VQModel(vq_config(source, image_size, norm_groups))
    load_weights(model, vq_weights(source, model.config), source.name)
    return model.eval()


def aim_weights(source: Source) -> dict[str, Tensor]:
    """Return AiM's weights by name, with names of neither network, which strict loading then lists."""
    return {**source.parts.aim, **source.parts.other}


def vq_weights(source: Source, config: VQConfig) -> dict[str, Tensor]:
    """Return the tokenizer's weights by name, with an empty record of used codes where the source has none."""
    # LlamaGen's record may be of integers; it is no weight, so any type is accepted.
    record = source.parts.vq.get(USAGE_RECORD, torch.zeros(config.usage_window))
    return {**source.parts.vq, **source.parts.other, USAGE_RECORD: record.float()}
