"""Copy a model's weights in the decoder's type to addresses that never change."""

from dataclasses import dataclass

import torch
from torch import Tensor

from aim_lightning.models import AiM


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
        self._wide = [_empty(value, dtype) for value in _matrices(model)]
        self._narrow = [_empty(value, torch.float32) for value in _vectors(model)]
        self._taps = _empty(_taps(model), torch.float32)  # one copy for all layers
        wide, narrow = iter(self._wide), iter(self._narrow)
        self.words = next(wide)
        self.positions = next(wide) if model.config.position_embedding else None
        self.norm_f, self.norm_final = next(narrow), next(narrow)
        self.layers = [
            LayerWeights(
                conv_weight=taps,
                in_proj=next(wide),
                out_proj=next(wide),
                **{name: next(narrow) for name in ("norm", "conv_bias", "dt_bias", "a_log", "d", "gated_norm")},
            )
            for taps in self._taps
        ]

    @torch.no_grad()
    def refresh(self, model: AiM) -> None:
        """Copy every weight again: cheaper than detecting changes (EMA swaps, optimizer steps).

        Grouped by type and layout, so that a GPU runs a few kernels instead of one per tensor.
        """
        torch._foreach_copy_(self._wide, _matrices(model))
        torch._foreach_copy_(self._narrow, _vectors(model))
        self._taps.copy_(_taps(model))


def _empty(value: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(value.shape, dtype=dtype, device=value.device)


def _matrices(model: AiM) -> list[Tensor]:
    """Return the weights in the decoder's type: embeddings, then in_proj and out_proj of each layer."""
    backbone = model.backbone
    weights = [backbone.embeddings.word_embeddings.weight]
    if model.config.position_embedding:
        weights.append(backbone.embeddings.position_embeddings.weight)
    for layer in backbone.layers:
        weights += [layer.mixer.in_proj.weight, layer.mixer.out_proj.weight]
    return weights


def _vectors(model: AiM) -> list[Tensor]:
    """Return the weights that stay float32, without those of the convolutions."""
    backbone = model.backbone
    weights = [backbone.norm_f.weight, backbone.final_layer.norm_final.weight]
    for layer in backbone.layers:
        mixer = layer.mixer
        weights += [layer.norm.weight, mixer.conv1d.bias, mixer.dt_bias, mixer.A_log, mixer.D, mixer.norm.weight]
    return weights


@torch.no_grad()
def _taps(model: AiM) -> Tensor:
    """Return the convolutions' weights, (layers, taps, channels), so that kernels read neighbouring channels."""
    weights = [layer.mixer.conv1d.weight[:, 0] for layer in model.backbone.layers]
    return torch.stack(weights).transpose(1, 2)
