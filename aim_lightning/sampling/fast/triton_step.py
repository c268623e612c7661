"""One step of the fast decoder on an NVIDIA GPU: Triton kernels and matrix products, made to be captured."""

import torch
import triton
from torch import Tensor

from aim_lightning.models import AiMConfig
from aim_lightning.sampling.fast import kernels
from aim_lightning.sampling.fast.buffers import Buffers
from aim_lightning.sampling.fast.weights import StaticWeights

EPS = 1e-5
# Inner block of the linear kernel.
DEEP = 128


class TritonStep:
    """Calling it enqueues one more code for every image; nothing is read back."""

    def __init__(self, config: AiMConfig, weights: StaticWeights, buffers: Buffers) -> None:
        self.config, self.weights, self.buffers = config, weights, buffers
        self.block = triton.next_power_of_2(config.d_model)
        self.heads, self.steps, self.warps = mix_shape(config, buffers.rows)
        self.parts = config.nheads // self.heads
        self.split = 4 if buffers.dtype == torch.bfloat16 and config.d_inner >= 4 * DEEP else 1
        self.out = buffers.out_SMD[: self.split]
        self.squares = buffers.squares.flatten()[: buffers.rows * self.parts].view(buffers.rows, self.parts)

    def __call__(self) -> None:
        buffers, weights = self.buffers, self.weights
        self._enter()
        for i, layer in enumerate(weights.layers):
            linear(buffers.h_MD, layer.in_proj, buffers.zxbcdt)
            self._mix(i)
            linear(buffers.y_MI, layer.out_proj, self.out)
            if i + 1 < len(weights.layers):
                self._advance(i, weights.layers[i + 1].norm, self._layer_rows(i + 1))
        self._advance(i, weights.norm_final, self._final_rows(), final=weights.norm_f)
        linear(buffers.h_MD, weights.words, buffers.logits_MV)
        self._choose()

    def _layer_rows(self, i: int) -> Tensor | None:
        return None if self.buffers.layer_rows is None else self.buffers.layer_rows[i]

    def _final_rows(self) -> Tensor | None:
        return None if self.buffers.final_rows is None else self.buffers.final_rows[0]

    def _enter(self) -> None:
        buffers, weights, rows = self.buffers, self.weights, self._layer_rows(0)
        positions = weights.words if weights.positions is None else weights.positions
        kernels.enter_kernel[(buffers.rows,)](
            buffers.codes_BT, buffers.step, buffers.offset, weights.words, positions, buffers.start_MD,
            buffers.residual_MD, weights.layers[0].norm, buffers.h_MD if rows is None else rows, buffers.h_MD,
            self.config.d_model, buffers.images, EPS, self.config.num_tokens, ROWS=self.config.modulation_rows,
            MODULATED=rows is not None, POSITIONS=weights.positions is not None, BLOCK=self.block,
        )  # fmt: skip

    def _advance(self, i: int, norm: Tensor, rows: Tensor | None, final: Tensor | None = None) -> None:
        buffers, gate = self.buffers, self._layer_rows(i)
        kernels.advance_kernel[(buffers.rows,)](
            self.out, self.squares, buffers.residual_MD, buffers.h_MD if gate is None else gate, norm,
            buffers.h_MD if rows is None else rows, norm if final is None else final, buffers.h_MD,
            self.config.d_model, self.config.d_inner, EPS, buffers.rows, GATE_ROWS=self.config.modulation_rows,
            ROWS=1 if rows is None else rows.shape[1], MODULATED=rows is not None, FINAL=final is not None,
            PARTS=self.parts, PARTS_BLOCK=triton.next_power_of_2(self.parts), SPLIT=self.split, BLOCK=self.block,
        )  # fmt: skip

    def _mix(self, i: int) -> None:
        buffers, layer, cache, config = self.buffers, self.weights.layers[i], self.buffers.layers[i], self.config
        kernels.mix_kernel[(buffers.rows, self.parts)](
            buffers.zxbcdt, cache.ring, cache.x_MTI, cache.b_MTN, cache.g_MHT, cache.decay_MH, layer.conv_weight,
            layer.conv_bias, layer.dt_bias, layer.a_log, layer.d, layer.gated_norm, buffers.y_MI, self.squares,
            buffers.step, buffers.rows, config.num_tokens, buffers.zxbcdt.shape[1], INNER=config.d_inner,
            H=config.nheads, P=config.headdim, N=config.d_state, HEADS=self.heads, STEPS=self.steps, TAPS=config.d_conv,
            num_warps=self.warps,
        )  # fmt: skip

    def _choose(self) -> None:
        buffers, V = self.buffers, self.config.vocab_size
        kernels.choose_kernel[(buffers.images,)](
            buffers.logits_MV, buffers.codes_BT, buffers.step, buffers.done, buffers.uniform_BT, buffers.scale_T,
            buffers.temperature, buffers.top_k, buffers.top_p, buffers.diverged, V, self.config.num_tokens,
            buffers.images, GUIDED=buffers.guided, BLOCK=triton.next_power_of_2(V), num_warps=32 if V > 4096 else 4,
        )  # fmt: skip


def linear(x_MK: Tensor, weight_NK: Tensor, out: Tensor) -> None:
    """x weight^T into memory that stays where it is: (M, N), or parts of the sum (S, M, N).

    In bfloat16 the kernel, whose sums leave in the type of `out`; in float32 cuBLAS, which computes exact products.
    """
    (rows, inner), cols = x_MK.shape, weight_NK.shape[0]
    split = out.shape[0] if out.dim() == 3 else 1
    if x_MK.dtype == torch.float32:
        torch.mm(x_MK, weight_NK.t(), out=out.view(rows, cols))
        return
    tall = min(64, max(16, triton.next_power_of_2(rows)))
    wide = 16 if cols <= 1024 else 32
    grid = (triton.cdiv(cols, wide), split, triton.cdiv(rows, tall))
    kernels.linear_kernel[grid](
        x_MK, weight_NK, out, rows, cols, INNER=inner, SPLIT=split, ROWS=tall, WIDE=wide, DEEP=DEEP,
        num_stages=4, num_warps=4,
    )  # fmt: skip


def mix_shape(config: AiMConfig, rows: int) -> tuple[int, int, int]:
    """(heads a program, steps a block, warps) of the mix kernel: many programs for few rows, wide ones for many."""
    if rows * config.nheads <= 1024 or config.nheads % 2:
        return 1, 64, 2
    return 2, 64, 2
