"""One step of the fast decoder on an NVIDIA GPU: Triton kernels and matrix products, made to be captured."""

import torch
import triton
from torch import Tensor

from aim_lightning.models import AiMConfig
from aim_lightning.sampling.fast import kernels
from aim_lightning.sampling.fast.buffers import Buffers
from aim_lightning.sampling.fast.kernel_configs import MatmulConfig, shapes_for, shared_bytes
from aim_lightning.sampling.fast.sampler import draw
from aim_lightning.sampling.fast.weights import StaticWeights

EPS = 1e-5


class TritonStep:
    """Calling it enqueues one more code for every image; nothing is read back."""

    def __init__(self, config: AiMConfig, weights: StaticWeights, buffers: Buffers) -> None:
        self.config, self.weights, self.buffers = config, weights, buffers
        self.block = triton.next_power_of_2(config.d_model)
        device = buffers.codes_BT.device
        self.shapes = shapes_for(config, buffers.rows, buffers.dtype, shared_bytes(device))
        self.parts = config.nheads // self.shapes.mix.heads
        self.out = buffers.out_SMD[: self.shapes.split]
        self.squares = buffers.squares.flatten()[: buffers.rows * self.parts].view(buffers.rows, self.parts)
        self.launch = launch_options(device, buffers.dtype)

    def __call__(self) -> None:
        buffers, weights = self.buffers, self.weights
        self._enter()
        for i, layer in enumerate(weights.layers):
            self._project(i)
            self._mix(i)
            linear(buffers.y_MI, layer.out_proj, self.out, self.shapes.out, self.launch, self.shapes.line)
            self._advance(i)
        linear(buffers.h_MD, weights.words, buffers.logits_MV, self.shapes.head, self.launch, self.shapes.line)
        draw(self.config, buffers, self.shapes.choose_warps, self.launch)

    def _layer_rows(self, i: int) -> Tensor | None:
        return None if self.buffers.layer_rows is None else self.buffers.layer_rows[i]

    def _after(self, i: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What follows layer i: weights of the next norm, its modulation, and after the last layer norm_f before it."""
        weights, final = self.weights, self.buffers.final_rows
        if i + 1 < len(weights.layers):
            return weights.layers[i + 1].norm, self._layer_rows(i + 1), None
        return weights.norm_final, None if final is None else final[0], weights.norm_f

    def _enter(self) -> None:
        buffers, weights, rows = self.buffers, self.weights, self._layer_rows(0)
        positions = weights.words if weights.positions is None else weights.positions
        kernels.enter_kernel[(buffers.rows,)](
            buffers.codes_BT, buffers.step, buffers.offset, weights.words, positions, buffers.start_MD,
            buffers.residual_MD, weights.layers[0].norm, buffers.h_MD if rows is None else rows, buffers.h_MD,
            self.config.d_model, buffers.images, EPS, self.config.num_tokens, ROWS=self.config.modulation_rows,
            MODULATED=rows is not None, POSITIONS=weights.positions is not None, BLOCK=self.block, **self.launch,
        )  # fmt: skip

    def _advance(self, i: int) -> None:
        buffers, gate, (norm, rows, final) = self.buffers, self._layer_rows(i), self._after(i)
        kernels.advance_kernel[(buffers.rows,)](
            self.out, self.squares, buffers.residual_MD, buffers.h_MD if gate is None else gate, norm,
            buffers.h_MD if rows is None else rows, norm if final is None else final, buffers.h_MD,
            self.config.d_model, self.config.d_inner, EPS, buffers.rows, GATE_ROWS=self.config.modulation_rows,
            ROWS=1 if rows is None else rows.shape[1], MODULATED=rows is not None, FINAL=final is not None,
            PARTS=self.parts, PARTS_BLOCK=triton.next_power_of_2(self.parts), SPLIT=self.shapes.split, BLOCK=self.block,
            **self.launch,
        )  # fmt: skip

    def _project(self, i: int) -> None:
        """In bfloat16 one kernel; in float32 cuBLAS, which computes exact products, and one for the rest."""
        buffers, layer, config = self.buffers, self.weights.layers[i], self.config
        cols = layer.in_proj.shape[0]
        if buffers.dtype == torch.float32:
            linear(buffers.h_MD, layer.in_proj, buffers.zxbcdt, self.shapes.project, self.launch)
            grid = (triton.cdiv(cols, 512), buffers.rows)
            kernels.activate_kernel[grid](buffers.zxbcdt, *self._inner(i), **self._sizes(), WIDE=512)
            return
        shape = self.shapes.project
        kernels.project_kernel[triton.cdiv(cols, shape.wide), triton.cdiv(buffers.rows, shape.tall)](
            buffers.h_MD, layer.in_proj, *self._inner(i), D=config.d_model, **self._sizes(), **blocks(shape),
            LINE=self.shapes.line, **self.launch,
        )  # fmt: skip

    def _inner(self, i: int) -> tuple:
        """What the way into mixer i reads and writes besides its product."""
        buffers, layer, cache = self.buffers, self.weights.layers[i], self.buffers.layers[i]
        return (
            cache.ring, layer.conv_weight, layer.conv_bias, layer.dt_bias, buffers.gate_MI, cache.x_MTI, cache.b_MTN,
            buffers.c_MN, buffers.dt_MH, buffers.step, buffers.rows, self.config.num_tokens,
        )  # fmt: skip

    def _sizes(self) -> dict:
        config = self.config
        return {"INNER": config.d_inner, "H": config.nheads, "N": config.d_state, "TAPS": config.d_conv}

    def _mix(self, i: int) -> None:
        buffers, layer, cache, config = self.buffers, self.weights.layers[i], self.buffers.layers[i], self.config
        shape, gate, (norm, rows, _) = self.shapes.mix, self._layer_rows(i), self._after(i)
        kernels.mix_kernel[(buffers.rows, self.parts)](
            buffers.gate_MI, cache.x_MTI, cache.b_MTN, cache.g_MHT, cache.decay_MH, buffers.c_MN, buffers.dt_MH,
            layer.a_log, layer.d, layer.gated_norm, buffers.y_MI, self.squares, buffers.step,
            buffers.h_MD if gate is None else gate, buffers.h_MD if rows is None else rows, norm, config.num_tokens,
            INNER=config.d_inner, H=config.nheads, P=config.headdim, N=config.d_state, D=config.d_model,
            GATE_ROWS=config.modulation_rows, NEXT_ROWS=1 if rows is None else rows.shape[1], HEADS=shape.heads,
            STEPS=shape.steps, PRODUCTS=shape.products, FIRST=shape.first, AHEAD=self.shapes.ahead,
            AHEAD_B=self.shapes.ahead_b, VECTORS=self.shapes.vectors and gate is not None, LINE=self.shapes.line,
            num_stages=shape.stages, num_warps=shape.warps,
            **({"maxnreg": shape.registers} if shape.registers else {}), **self.launch,
        )  # fmt: skip


def launch_options(device: torch.device, dtype: torch.dtype) -> dict:
    """How every kernel of a step is launched: from Hopper on, bfloat16 ones start while the one before ends.

    In float32 cuBLAS's products stand between them, which know nothing of that.
    """
    chained = device.type == "cuda" and dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"CHAINED": True, "launch_pdl": True} if chained else {"CHAINED": False}


def blocks(shape: MatmulConfig) -> dict:
    """A product's shape as its kernel takes it."""
    sizes = {"ROWS": shape.tall, "WIDE": shape.wide, "DEEP": shape.deep, "EARLY": shape.early}
    return {**sizes, "num_stages": shape.stages, "num_warps": shape.warps}


def linear(x_MK: Tensor, weight_NK: Tensor, out: Tensor, shape: MatmulConfig, launch: dict, line: int = 64) -> None:
    """x weight^T into memory that stays where it is: (M, N), or parts of the sum (S, M, N).

    In bfloat16 the kernel, whose sums leave in the type of `out`; in float32 cuBLAS, which computes exact products.
    """
    (rows, inner), cols = x_MK.shape, weight_NK.shape[0]
    split = out.shape[0] if out.dim() == 3 else 1
    if x_MK.dtype == torch.float32:
        torch.mm(x_MK, weight_NK.t(), out=out.view(rows, cols))
        return
    grid = (triton.cdiv(cols, shape.wide), split, triton.cdiv(rows, shape.tall))
    kernels.linear_kernel[grid](
        x_MK, weight_NK, out, rows, cols, INNER=inner, SPLIT=split, **blocks(shape), LINE=line, **launch
    )  # fmt: skip
