"""Load networks strictly from any source of weights, and resize tables for other classes or another grid."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from aim_lightning.checkpoint.io import load_weights
from aim_lightning.models import NETWORKS, AutoregressiveNetwork, VQConfig, VQModel
from aim_lightning.models.vq.model import USAGE_RECORD
from aim_lightning.utils.errors import UserError
from aim_lightning.weights.infer_config import POSITIONS, aim_config, vq_config
from aim_lightning.weights.source import AnySource, Source, read_source

CLASSES = "backbone.cls_embed.embedding_table.weight"


def import_aim(
    source: AnySource, *, raw: bool = False, num_tokens: int | None = None, backend: str = "auto"
) -> AutoregressiveNetwork:
    """Load the AiM of any source, or another network of stage 2 from its run; evaluation mode, float32, on the CPU.

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
    config = aim_config(source, num_tokens)
    model = NETWORKS[type(config)](config, backend)
    load_weights(model, aim_weights(source), source.name)
    return model.eval()


def import_vq(
    source: AnySource, *, raw: bool = False, image_size: int | None = None, norm_groups: int | None = None
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


def adapt_weights(model: AutoregressiveNetwork, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Resize the class table and the position table for `model`; other weights stay as they are, for strict loading.

    With another number of classes the new classes start as the model's freshly initialised rows, and the null class
    is kept.
    With another grid the positions are resized bicubically in two dimensions.

    Args:
        model: the network that will load them.
        weights: published names, without prefix.

    Returns:
        (weights, one line for each table that was replaced).

    Raises:
        UserError: the grid is not square, so that its positions have no rows and columns.
    """
    adapted, notes = dict(weights), []
    current = model.state_dict()
    for name, adapt in ((CLASSES, _classes), (POSITIONS, _positions)):
        old, new = weights.get(name), current.get(name)
        if old is not None and new is not None and old.shape != new.shape and old.shape[1:] == new.shape[1:]:
            adapted[name], note = adapt(old, new)
            notes.append(f"{name}: {note}")
    return adapted, notes


def _classes(old: Tensor, new: Tensor) -> tuple[Tensor, str]:
    # The last row is the null class of guidance, which means the same in both networks.
    table = torch.cat((new[:-1].to(old), old[-1:].to(new.device)))
    return table, f"{len(new) - 1} fresh classes in place of {len(old) - 1}, the null class is kept"


def _positions(old: Tensor, new: Tensor) -> tuple[Tensor, str]:
    before, after = _side(len(old) - 1), _side(len(new) - 1)
    # The last row is the position after the last code, outside the grid; bicubic needs float32.
    grid = old[:-1].float().unflatten(0, (before, before)).permute(2, 0, 1)[None]
    resized = F.interpolate(grid, size=(after, after), mode="bicubic", align_corners=False)
    table = torch.cat((resized[0].flatten(1).T.to(old), old[-1:]))
    return table, f"resized from {before}x{before} to {after}x{after} codes"


def _side(codes: int) -> int:
    side = math.isqrt(codes)
    if side * side != codes:
        raise UserError(f"{POSITIONS}: {codes} codes are not a square grid; they cannot be resized")
    return side
