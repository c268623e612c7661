"""The blocks of AiM and the norms behind them on the fused kernels."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aim_lightning.models.aim.aim_config import AiMConfig
from aim_lightning.models.aim.fused.loss import WIDEST
from aim_lightning.models.aim.fused.mixer import FusedMixer
from aim_lightning.models.aim.fused.norm import ModulatedNorm
from aim_lightning.models.aim.recompute import apply_layers

AMPERE = (8, 0)
WIDEST_HEAD, WIDEST_STATE, WIDEST_MODEL = 128, 256, 8192


def refusal(config: AiMConfig, device: torch.device) -> str | None:
    """Return why the fused path cannot train this network on this device; None when it can."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "it needs an NVIDIA GPU"
    if device.type == "cuda" and (not torch.cuda.is_available() or torch.cuda.get_device_capability(device) < AMPERE):
        return "it needs an NVIDIA GPU from Ampere on"
    limits = (
        ("headdim", config.headdim, WIDEST_HEAD),
        ("d_state", config.d_state, WIDEST_STATE),
        ("d_model", config.d_model, WIDEST_MODEL),
        ("vocab_size", config.vocab_size, WIDEST),
    )
    for name, value, largest in limits:
        if value > largest:
            return f"{name} is {value}, and its kernels take up to {largest}"
    return None


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the type of the matrix products: that of autocast where it is on, else that of the input."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def forward_stack(
    backbone: nn.Module, x_BLD: Tensor, layers: Sequence[Tensor | None], final_B2D: Tensor | None
) -> Tensor:
    """Map embedded inputs (B, L, D) to the inputs of the head, in the type of the matrix products.

    Args:
        backbone: holds the parameters.
        x_BLD: embedded codes.
        layers: rows of each layer's modulation, (B, 3, D) or (B, 6, D) with an MLP, or None.
        final_B2D: shift and scale of the final layer, or None.
    """
    dtype = compute_dtype(x_BLD)

    def apply(raw, row_scale, gate, residual, layer: nn.Module, rows: Tensor | None) -> tuple[Tensor | None, ...]:
        for norm, branch, (shift, scale, next_gate) in _branches(layer, rows):
            u, residual = ModulatedNorm.apply(
                raw, row_scale, gate, residual, norm.weight, shift, scale, norm.eps, dtype
            )
            raw, row_scale = branch(u)
            gate = next_gate
        return raw, row_scale, gate, residual

    items = zip(backbone.layers, layers, strict=True)
    raw, row_scale, gate, residual = apply_layers(apply, items, (x_BLD, None, None, None), backbone.checkpointing)
    norm = backbone.norm_f
    h, _ = ModulatedNorm.apply(raw, row_scale, gate, residual, norm.weight, None, None, norm.eps, torch.float32)
    shift, scale = (None, None) if final_B2D is None else final_B2D.unbind(1)
    norm = backbone.final_layer.norm_final
    return ModulatedNorm.apply(h, None, None, None, norm.weight, shift, scale, norm.eps, dtype)[0]


def modulations(backbone: nn.Module, class_BD: Tensor) -> tuple[Tensor | None, ...]:
    """Return the rows of every layer, (B, 3, D) or (B, 6, D); the heads of plain adaLN are one matrix product."""
    if backbone.config.adaln != "layer":
        return tuple(backbone.modulations(class_BD))
    heads = [layer.adaLN_modulation[1] for layer in backbone.layers]
    weight, bias = torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])
    return (
        F.linear(F.silu(class_BD), weight, bias)
        .unflatten(-1, (len(heads), heads[0].out_features // class_BD.shape[1], -1))
        .unbind(1)
    )


def _branches(layer: nn.Module, rows: Tensor | None) -> list[tuple]:
    """Return (norm, branch, modulation) of the mixer and, where there is one, of the MLP."""
    parts = [None] * 6 if rows is None else rows.unbind(1)
    if not hasattr(layer, "mlp"):
        return [(layer.norm, lambda u: _mix(layer.mixer, u), parts[:3])]
    # The published order is shift, shift, scale, scale, gate, gate: mixer and MLP alternate.
    return [
        (layer.norm, lambda u: _mix(layer.mixer, u), parts[0::2]),
        (layer.norm2, lambda u: (layer.mlp(u), None), parts[1::2]),
    ]


def _mix(mixer: nn.Module, u_BLD: Tensor) -> tuple[Tensor, Tensor]:
    config = mixer.config
    return FusedMixer.apply(
        u_BLD, mixer.in_proj.weight, mixer.conv1d.weight, mixer.conv1d.bias, mixer.dt_bias, mixer.A_log, mixer.D,
        mixer.norm.weight, mixer.out_proj.weight, (config.nheads, config.headdim, config.d_state), mixer.norm.eps,
    )  # fmt: skip
