"""Networks from any source of weights, loaded strictly."""

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
    """The AiM of any source, in evaluation mode on the CPU, in float32; `.to(torch.bfloat16)` afterwards as wanted.

    Args:
        source: see `aim_lightning.weights.read_source`. A tokenizer beside it is left alone.
        raw: the trained weights themselves where the source has averaged ones too.
        num_tokens: codes an image; needed only where neither a position embedding nor a configuration tells it.
        backend: of the network (see `AiM`); no source of weights decides it.

    Raises:
        UserError: missing, damaged or foreign file; names that are missing, surplus or misshapen, all in one line;
            a head that is not the word embedding it is tied to; an argument that contradicts the source; a backend
            that cannot be had.
    """
    found = read_source(source, raw=raw)
    model = AiM(aim_config(found, num_tokens), backend)
    load_weights(model, aim_weights(found), found.name)
    return model.eval()


def import_vq(
    source: str | Path | Mapping[str, Any] | Source,
    *,
    raw: bool = False,
    image_size: int | None = None,
    norm_groups: int | None = None,
) -> VQModel:
    """The VQ tokenizer of any source, in evaluation mode on the CPU, in float32.

    Args:
        source: see `aim_lightning.weights.read_source`; also a published AiM, whose tokenizer is taken.
        raw: the trained weights themselves where the source has averaged ones too.
        image_size: height and width of its images, pixels; by default what the source says, else 256 as published.
        norm_groups: groups of its GroupNorms, where the source does not tell (32 as published).

    Raises:
        UserError: missing, damaged or foreign file; names that are missing, surplus or misshapen, all in one line;
            an argument that contradicts the source.
    """
    found = read_source(source, raw=raw)
    model = VQModel(vq_config(found, image_size, norm_groups))
    load_weights(model, vq_weights(found, model.config), found.name)
    return model.eval()


def aim_weights(source: Source) -> dict[str, Tensor]:
    """AiM's weights by our names; names of neither network are kept, so that strict loading lists them."""
    return {**source.parts.aim, **source.parts.other}


def vq_weights(source: Source, config: VQConfig) -> dict[str, Tensor]:
    """The tokenizer's weights likewise; without a record of used codes, an empty one. The record may be of any type."""
    record = source.parts.vq.get(USAGE_RECORD, torch.zeros(config.usage_window))
    return {**source.parts.vq, **source.parts.other, USAGE_RECORD: record.float()}
