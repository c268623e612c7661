"""Cross-entropy of the tied head in chunks of rows: no float32 logits, and never all logits, in memory."""

from typing import Any

import torch
import triton
from torch import Tensor

from aim_lightning.models.aim.fused.kernels.cross_entropy import cross_entropy
from aim_lightning.models.aim.fused.launch import launch
from aim_lightning.models.aim.fused.products import product_float32
from aim_lightning.models.aim.fused.tiling import TILING

CHUNK = 8192  # rows of logits at a time: 268 MB in bf16 for 16,384 codes
WIDEST = 65536  # logits of a row that one program holds


class FusedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of (hidden (T, D), weight (V, D), targets (T)), nats.

    Gradients are computed in the forward pass, while the logits are at hand, and scaled on the device in the backward.
    """

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
        rows, vocabulary = hidden_TD.shape[0], weight_VD.shape[0]
        low = weight_VD.to(hidden_TD.dtype)
        losses = torch.empty(rows, dtype=torch.float32, device=hidden_TD.device)
        with_gradient = any(ctx.needs_input_grad)
        d_hidden = torch.empty_like(hidden_TD) if with_gradient else None
        d_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if with_gradient else None
        for start in range(0, rows, CHUNK):
            part = slice(start, start + CHUNK)
            logits = hidden_TD[part] @ low.T
            key = (vocabulary, logits.dtype, targets_T.dtype, with_gradient, rows, logits.device)
            launch(
                key, cross_entropy, (logits.shape[0],), logits, targets_T[part], losses[part], vocabulary, 1.0 / rows,
                WITH_GRADIENT=with_gradient, WIDTH=triton.next_power_of_2(vocabulary), **TILING["cross_entropy"],
            )  # fmt: skip
            if with_gradient:
                torch.mm(logits, low, out=d_hidden[part])
                d_weight += product_float32(logits.T, hidden_TD[part])
        ctx.save_for_backward(d_hidden, d_weight)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple:
        d_hidden, d_weight = ctx.saved_tensors
        # Scaled on the device: reading d_loss on the host would wait for the GPU.
        return d_hidden * d_loss.to(d_hidden.dtype), d_weight * d_loss, None


def fused_cross_entropy(hidden_BLD: Tensor, weight_VD: Tensor, targets_BL: Tensor) -> Tensor:
    """Return the mean cross-entropy over all codes, nats.

    Args:
        hidden_BLD: inputs of the head, (B, L, D), float32 or bf16.
        weight_VD: weight of the head, at most 65,536 rows.
        targets_BL: codes, int64 (B, L).
    """
    return FusedCrossEntropy.apply(hidden_BLD.flatten(0, 1), weight_VD, targets_BL.flatten())
