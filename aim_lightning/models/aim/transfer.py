"""Use the weights of one AiM to initialise another one with other classes or another grid."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from aim_lightning.models.aim.network import AiM
from aim_lightning.utils.errors import UserError

CLASSES = "backbone.cls_embed.embedding_table.weight"
POSITIONS = "backbone.embeddings.position_embeddings.weight"


def adapt_weights(model: AiM, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
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
