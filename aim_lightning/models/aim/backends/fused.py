"""AiM's training path on our own Triton kernels; another backend decodes, and trains what they do not support."""

import torch
from torch import Tensor, nn

from aim_lightning.models.aim.aim_config import AiMConfig
from aim_lightning.models.aim.fused.loss import fused_cross_entropy
from aim_lightning.models.aim.fused.stack import compute_dtype, forward_stack, modulations
from aim_lightning.utils.logging import log_once


class TritonBackend:
    """Stacks of blocks on our kernels in bf16 or float32; `other` decodes, and trains with dropout or in fp16.

    Args:
        other: backend for the steps of decoding and for complete sequences that the kernels do not take.
    """

    name = "triton"

    def __init__(self, other) -> None:
        self.other = other
        self.kernels = f"our Triton kernels for complete sequences; {other.name} decodes: {other.kernels}"
        self.mix, self.step, self.add_norm = other.mix, other.step, other.add_norm

    def trains(self, config: AiMConfig, dtype: torch.dtype) -> bool:
        """Return True if the kernels take training steps of this network in this type of matrix products."""
        return _call_refusal(config, dtype, training=True) is None

    def takes(self, backbone: nn.Module, weight: Tensor) -> bool:
        """Return True if the kernels take this call; log once why they refuse others."""
        reason = _call_refusal(backbone.config, compute_dtype(weight), backbone.training)
        if reason:
            log_once(f"backend triton: {self.other.name} computes this network, because {reason}")
        return reason is None

    @torch.compiler.disable
    def hidden(self, backbone: nn.Module, x_BLD: Tensor, class_BD: Tensor) -> Tensor:
        """Return the inputs of the head (B, L, D)."""
        final_B2D = backbone.final_layer.modulation(class_BD)
        x_BLD = backbone.token_dropout(x_BLD)
        return forward_stack(backbone, x_BLD, modulations(backbone, class_BD), final_B2D)

    cross_entropy = staticmethod(torch.compiler.disable(fused_cross_entropy))


def _call_refusal(config: AiMConfig, dtype: torch.dtype, training: bool) -> str | None:
    if dtype not in (torch.float32, torch.bfloat16):
        return f"its kernels compute in bfloat16 and float32, not in {dtype}"
    if training and (config.mixer_dropout or config.mlp_dropout):
        return "its kernels have no dropout"
    return None
