"""A model's weights in the decoder's type, at addresses that never change."""

from dataclasses import dataclass

import torch
from torch import Tensor

from aim_lightning.models import AiM


@dataclass
class LayerWeights:
    """One block: `norm` is its own, the others are its mixer's; conv_weight is (taps, channels)."""

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
    """Copies that `refresh` brings up to date: a captured graph reads them, so they are never allocated anew.

    Matrices take `dtype`; norms, biases and the parameters of the recurrence stay float32.
    """

    def __init__(self, model: AiM, dtype: torch.dtype) -> None:
        self._wide, self._narrow = ([_empty(value, kind) for value in found] for found, kind in _kinds(model, dtype))
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
        """Copy everything anew: cheaper than being sure that nothing changed (EMA swaps, optimizer steps).

        Grouped by type and layout, so that a GPU takes a few kernels and not one for each tensor.
        """
        torch._foreach_copy_(self._wide, _matrices(model))
        torch._foreach_copy_(self._narrow, _vectors(model))
        self._taps.copy_(_taps(model))


def _empty(value: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(value.shape, dtype=dtype, device=value.device)


def _kinds(model: AiM, dtype: torch.dtype) -> tuple:
    return (_matrices(model), dtype), (_vectors(model), torch.float32)


def _matrices(model: AiM) -> list[Tensor]:
    """Those that take the decoder's type: embeddings, then in_proj and out_proj of each layer."""
    backbone = model.backbone
    found = [backbone.embeddings.word_embeddings.weight]
    if model.config.position_embedding:
        found.append(backbone.embeddings.position_embeddings.weight)
    for layer in backbone.layers:
        found += [layer.mixer.in_proj.weight, layer.mixer.out_proj.weight]
    return found


def _vectors(model: AiM) -> list[Tensor]:
    """Those that stay float32, but for the convolutions' weights."""
    backbone = model.backbone
    found = [backbone.norm_f.weight, backbone.final_layer.norm_final.weight]
    for layer in backbone.layers:
        mixer = layer.mixer
        found += [layer.norm.weight, mixer.conv1d.bias, mixer.dt_bias, mixer.A_log, mixer.D, mixer.norm.weight]
    return found


@torch.no_grad()
def _taps(model: AiM) -> Tensor:
    """Weights of the convolutions, (layers, taps, channels); their own layout has the taps last."""
    weights = [layer.mixer.conv1d.weight[:, 0] for layer in model.backbone.layers]
    return torch.stack(weights).transpose(1, 2)
