"""Weights of the fast decoder in memory of their own, as a captured graph contains addresses."""

from dataclasses import dataclass

import torch
from torch import Tensor

from aim_lightning.models import AiM

VECTORS = ("norm", "conv_bias", "dt_bias", "a_log", "d", "gated_norm")  # of a layer, kept in float32


@dataclass
class LayerWeights:
    """Weights of one block: `norm` is the block's, the others are its mixer's; conv_weight is (taps, channels)."""

    norm: Tensor
    in_proj: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    dt_bias: Tensor
    a_log: Tensor
    d: Tensor
    gated_norm: Tensor
    out_proj: Tensor


class StaticWeights:
    """Copies that `refresh` updates in place: a captured graph reads them, so they are never allocated again.

    Matrices take `dtype`; norms, biases and the parameters of the recurrence stay float32.
    """

    def __init__(self, model: AiM, dtype: torch.dtype) -> None:
        wide, narrow, taps = _weights(model)
        self._wide = [torch.empty(value.shape, dtype=dtype, device=value.device) for value in wide]
        self._narrow = [torch.empty(value.shape, dtype=torch.float32, device=value.device) for value in narrow]
        self._taps = torch.empty(taps.shape, dtype=torch.float32, device=taps.device)  # one copy for all layers
        wide, narrow = iter(self._wide), iter(self._narrow)
        self.words = next(wide)
        self.positions = next(wide) if model.config.position_embedding else None
        self.norm_f, self.norm_final = next(narrow), next(narrow)
        self.layers = []
        for taps in self._taps:
            vectors = {name: next(narrow) for name in VECTORS}
            self.layers.append(LayerWeights(conv_weight=taps, in_proj=next(wide), out_proj=next(wide), **vectors))

    @torch.no_grad()
    def refresh(self, model: AiM) -> None:
        """Copy every weight again: cheaper than detecting changes (EMA swaps, optimizer steps).

        Grouped by type and layout, so that a GPU runs a few kernels instead of one per tensor.
        """
        wide, narrow, taps = _weights(model)
        torch._foreach_copy_(self._wide, wide)
        torch._foreach_copy_(self._narrow, narrow)
        self._taps.copy_(taps)


@torch.no_grad()
def _weights(model: AiM) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return the matrices, the vectors that stay float32, and the convolutions' taps (layers, taps, channels)."""
    backbone, embeddings = model.backbone, model.backbone.embeddings
    matrices = [embeddings.word_embeddings.weight]
    if model.config.position_embedding:
        matrices.append(embeddings.position_embeddings.weight)
    vectors = [backbone.norm_f.weight, backbone.final_layer.norm_final.weight]
    for layer in backbone.layers:
        mixer = layer.mixer
        matrices += [mixer.in_proj.weight, mixer.out_proj.weight]
        # In the order of VECTORS.
        vectors += [layer.norm.weight, mixer.conv1d.bias, mixer.dt_bias, mixer.A_log, mixer.D, mixer.norm.weight]
    # Transposed, so that kernels read neighbouring channels.
    taps = torch.stack([layer.mixer.conv1d.weight[:, 0] for layer in backbone.layers]).transpose(1, 2)
    return matrices, vectors, taps
