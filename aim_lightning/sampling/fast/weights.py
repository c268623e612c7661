"""A model's weights in the decoder's type, at addresses that never change."""

from collections.abc import Iterator
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
        self._copies = [
            torch.empty(value.shape, dtype=dtype if wide else torch.float32, device=value.device)
            for value, wide in _sources(model)
        ]
        copies = iter(self._copies)
        self.words = next(copies)
        self.positions = next(copies) if model.config.position_embedding else None
        self.norm_f, self.norm_final = next(copies), next(copies)
        self.layers = [LayerWeights(*(next(copies) for _ in range(9))) for _ in model.backbone.layers]

    @torch.no_grad()
    def refresh(self, model: AiM) -> None:
        """Copy everything anew: cheaper than being sure that nothing changed (EMA swaps, optimizer steps)."""
        torch._foreach_copy_(self._copies, [value for value, _ in _sources(model)])


def _sources(model: AiM) -> Iterator[tuple[Tensor, bool]]:
    """(weight, whether it takes the decoder's type), in the order of StaticWeights' fields."""
    backbone = model.backbone
    yield backbone.embeddings.word_embeddings.weight.detach(), True
    if model.config.position_embedding:
        yield backbone.embeddings.position_embeddings.weight.detach(), True
    yield backbone.norm_f.weight.detach(), False
    yield backbone.final_layer.norm_final.weight.detach(), False
    for layer in backbone.layers:
        mixer = layer.mixer
        yield layer.norm.weight.detach(), False
        yield mixer.in_proj.weight.detach(), True
        yield mixer.conv1d.weight.detach()[:, 0].t(), False
        for value in (mixer.conv1d.bias, mixer.dt_bias, mixer.A_log, mixer.D, mixer.norm.weight):
            yield value.detach(), False
        yield mixer.out_proj.weight.detach(), True
