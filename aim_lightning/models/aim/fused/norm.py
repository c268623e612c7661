"""Autograd function of residual, gate, RMSNorm and adaLN modulation."""

from typing import Any

import torch
import triton
from torch import Tensor

from aim_lightning.models.aim.fused.kernels.modulated_norm import norm_backward, norm_forward, sum_chunks
from aim_lightning.models.aim.fused.launch import launch
from aim_lightning.models.aim.fused.tiling import tiling

CHUNK = 32  # rows whose sums one program of the backward pass adds up


class ModulatedNorm(torch.autograd.Function):
    """Map (raw, row_scale, gate, residual, weight, shift, scale, eps, dtype) to (u, new residual).

    new_residual = residual + gate * row_scale * raw, float32 (B, L, D);
    u = RMSNorm(new_residual) * weight * (1 + scale) + shift, (B, L, D) in `dtype`.
    Any of row_scale (B, L), gate, shift and scale (B, D), and residual may be None.
    """

    @staticmethod
    def forward(
        ctx: Any, raw, row_scale, gate, residual, weight, shift, scale, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # no zeros for a residual that nothing reads
        images, length, width = raw.shape
        raw = raw.contiguous()
        new_residual = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
        u = torch.empty(raw.shape, dtype=dtype, device=raw.device)
        rms = torch.empty(images, length, dtype=torch.float32, device=raw.device)
        padded = triton.next_power_of_2(width)
        tile = tiling("norm_forward", dtype, padded)
        has = {"HAS_RESIDUAL": residual is not None, "HAS_ROW_SCALE": row_scale is not None}
        key = (
            raw.shape,
            raw.dtype,
            dtype,
            weight.dtype,
            raw.device,
            *has.values(),
            *map(_layout, (gate, shift, scale)),
        )
        launch(
            key, norm_forward, (images, triton.cdiv(length, tile["ROWS"])),
            raw, row_scale, gate, residual, weight, shift, scale, new_residual, u, rms,
            length, width, _stride(gate), _stride(shift), eps,
            **has, HAS_GATE=gate is not None, HAS_SHIFT=shift is not None, WIDTH=padded, **tile,
        )  # fmt: skip
        ctx.save_for_backward(raw, row_scale, gate, new_residual, weight, scale, rms)
        ctx.has, ctx.key = has, key
        return u, new_residual

    @staticmethod
    def backward(ctx: Any, du: Tensor | None, d_new_residual: Tensor | None) -> tuple:
        raw, row_scale, gate, new_residual, weight, scale, rms = ctx.saved_tensors
        images, length, width = raw.shape
        du = torch.zeros_like(new_residual) if du is None else du.contiguous()
        d_new_residual = None if d_new_residual is None else d_new_residual.contiguous()
        chunks, padded = triton.cdiv(length, CHUNK), triton.next_power_of_2(width)
        d_raw = torch.empty_like(raw)
        d_residual = torch.empty_like(new_residual) if ctx.has["HAS_RESIDUAL"] else None
        d_row_scale = torch.empty_like(row_scale) if row_scale is not None else None
        sums = torch.empty(images, chunks, 3, width, dtype=torch.float32, device=raw.device)
        key = (ctx.key, du.dtype, d_new_residual is None)
        modulated = {"HAS_GATE": gate is not None, "HAS_SHIFT": scale is not None}
        launch(
            key, norm_backward, (images, chunks),
            d_new_residual, du, new_residual, rms, weight, scale, raw, row_scale, gate, d_residual, d_raw, d_row_scale,
            sums, length, width, CHUNK, _stride(gate), _stride(scale), HAS_D_RESIDUAL=d_new_residual is not None,
            **ctx.has, **modulated, WIDTH=padded, **tiling("norm_backward", du.dtype, padded),
        )  # fmt: skip
        d_shift, d_scale, d_gate, d_weight = torch.empty(4, images, width, dtype=torch.float32, device=raw.device)
        launch(
            key, sum_chunks, (images, triton.cdiv(width, 256)),
            sums, weight, scale, d_shift, d_scale, d_gate, d_weight, chunks, width, _stride(scale),
            **modulated, COLUMNS=256,
        )  # fmt: skip
        gate_grad = d_gate if gate is not None else None
        shift_grad, scale_grad = (d_shift, d_scale) if scale is not None else (None, None)
        return d_raw, d_row_scale, gate_grad, d_residual, d_weight.sum(0), shift_grad, scale_grad, None, None


def _stride(rows: Tensor | None) -> int:
    """Return the distance of two images' rows; views of a wider tensor are read in place."""
    return 0 if rows is None else rows.stride(0)


def _layout(rows: Tensor | None) -> tuple | None:
    """Return the specialization of a kernel. The rows are views, whose alignment differs from layer to layer."""
    return None if rows is None else (rows.dtype, rows.stride(0), rows.data_ptr() % 16)
