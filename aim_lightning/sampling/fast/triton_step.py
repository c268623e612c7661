"""One step of the fast decoder on an NVIDIA GPU: Triton kernels and matrix products, suited to graph capture."""

import torch
import triton
from torch import Tensor

from aim_lightning.models import AiMConfig
from aim_lightning.sampling.fast import kernels
from aim_lightning.sampling.fast.buffers import Buffers, StaticWeights
from aim_lightning.sampling.fast.kernel_configs import MatmulConfig, kernel_configs_for, shared_bytes

EPS = 1e-5
FEW_PROGRAMS = 128  # up to this number, each program has a multiprocessor of its own
CANDIDATE_WARPS = 8, 2  # for few programs, and for many: fewer warps spend fewer instructions


class TritonStep:
    """Enqueue one more code for every image when called; nothing is read back, so that the step can be captured."""

    def __init__(self, config: AiMConfig, weights: StaticWeights, buffers: Buffers) -> None:
        self.config, self.weights, self.buffers = config, weights, buffers
        self.block, device = triton.next_power_of_2(config.d_model), buffers.codes_BT.device
        self.configs = configs = kernel_configs_for(config, buffers.rows, buffers.dtype, shared_bytes(device))
        # The norm after the mixer needs a sum over the complete row: each program of a row leaves one part of it.
        self.parts = (
            config.d_inner // configs.state.columns if buffers.recurrent else config.nheads // configs.mix.heads
        )
        self.out = buffers.out_SMD[: configs.split]
        self.squares = buffers.squares.flatten()[: buffers.rows * self.parts].view(buffers.rows, self.parts)
        self.launch = launch_options(device, buffers.dtype)

    def prepare(self) -> None:
        """Compute the first step's input."""
        buffers, (tensors, sizes) = self.buffers, self._entrance()
        kernels.enter_kernel[(buffers.rows,)](buffers.start_MD, *tensors, self.config.d_model, EPS, **sizes)

    def __call__(self) -> None:
        buffers, weights = self.buffers, self.weights
        for i, layer in enumerate(weights.layers):
            self._project(i)
            self._mix(i)
            linear(buffers.y_MI, layer.out_proj, self.out, self.configs.out, self.launch, self.configs.line)
            self._advance(i)
        linear(buffers.h_MD, weights.words, buffers.logits_MV, self.configs.head, self.launch, self.configs.line)
        sample_codes(self.config, buffers, self.configs.choose_warps, self.launch, weights, *self._entrance())

    def _layer_rows(self, i: int) -> Tensor | None:
        return None if self.buffers.layer_rows is None else self.buffers.layer_rows[i]

    def _after(self, i: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the weight and modulation of the norm after layer i, and norm_f after the last layer."""
        weights, final = self.weights, self.buffers.final_rows
        if i + 1 < len(weights.layers):
            return weights.layers[i + 1].norm, self._layer_rows(i + 1), None
        return weights.norm_final, None if final is None else final[0], weights.norm_f

    def _entrance(self) -> tuple[tuple, dict]:
        """Return the tensors and constants with which a kernel stores a step's input."""
        buffers, rows = self.buffers, self._layer_rows(0)
        tensors = buffers.residual_MD, self.weights.layers[0].norm, buffers.h_MD if rows is None else rows, buffers.h_MD
        return tensors, {"ROWS": self.config.modulation_rows, "MODULATED": rows is not None, "BLOCK": self.block}

    def _advance(self, i: int) -> None:
        buffers, gate, (norm, rows, final) = self.buffers, self._layer_rows(i), self._after(i)
        kernels.advance_kernel[(buffers.rows,)](
            self.out, self.squares, buffers.residual_MD, buffers.h_MD if gate is None else gate, norm,
            buffers.h_MD if rows is None else rows, norm if final is None else final, buffers.h_MD,
            self.config.d_model, self.config.d_inner, EPS, buffers.rows, GATE_ROWS=self.config.modulation_rows,
            ROWS=1 if rows is None else rows.shape[1], MODULATED=rows is not None, FINAL=final is not None,
            PARTS=self.parts, PARTS_BLOCK=triton.next_power_of_2(self.parts), SPLIT=self.configs.split,
            BLOCK=self.block, **self.launch,
        )  # fmt: skip

    def _project(self, i: int) -> None:
        """Enqueue in_proj with convolution: one kernel in bfloat16, exact cuBLAS and a kernel in float32."""
        buffers, layer, config = self.buffers, self.weights.layers[i], self.config
        cols = layer.in_proj.shape[0]
        if buffers.dtype == torch.float32:
            linear(buffers.h_MD, layer.in_proj, buffers.zxbcdt, self.configs.project, self.launch)
            grid = (triton.cdiv(cols, 512), buffers.rows)
            kernels.activate_kernel[grid](buffers.zxbcdt, *self._inner(i), **self._sizes(), BLOCK_N=512)
            return
        matmul = self.configs.project
        kernels.in_proj_kernel[triton.cdiv(cols, matmul.block_n), triton.cdiv(buffers.rows, matmul.block_m)](
            buffers.h_MD, layer.in_proj, *self._inner(i), D=config.d_model, **self._sizes(), **matmul_options(matmul),
            LINE=self.configs.line, **self.launch,
        )  # fmt: skip

    def _inner(self, i: int) -> tuple:
        """Return the tensors of mixer i that its input kernels read and write, without the product."""
        buffers, layer, cache = self.buffers, self.weights.layers[i], self.buffers.layers[i]
        return (
            cache.ring, layer.conv_weight, layer.conv_bias, layer.dt_bias, buffers.gate_MI, buffers.x_MI, buffers.b_MN,
            buffers.c_MN, buffers.dt_MH, buffers.step, buffers.rows,
        )  # fmt: skip

    def _sizes(self) -> dict:
        config = self.config
        return {"INNER": config.d_inner, "H": config.nheads, "N": config.d_state, "TAPS": config.d_conv}

    def _mix(self, i: int) -> None:
        buffers, layer, cache, config = self.buffers, self.weights.layers[i], self.buffers.layers[i], self.config
        inputs = buffers.gate_MI, buffers.x_MI, buffers.b_MN, buffers.c_MN, buffers.dt_MH
        outputs = layer.a_log, layer.d, layer.gated_norm, buffers.y_MI, self.squares, buffers.step
        sizes = {"INNER": config.d_inner, "H": config.nheads, "P": config.headdim, "N": config.d_state}
        if buffers.recurrent:
            state = self.configs.state
            kernels.state_kernel[buffers.rows, self.parts](
                *inputs, cache.state_MIN, *outputs, **sizes, COLUMNS=state.columns, num_warps=state.warps,
                **self.launch,
            )  # fmt: skip
            return
        mixer = self.configs.mix
        kernels.mixer_kernel[(buffers.rows, self.parts)](
            *inputs, cache.x_MTI, cache.b_MTN, cache.g_MHT, cache.decay_MH, *outputs, config.num_tokens, **sizes,
            HEADS=mixer.heads, STEPS=mixer.steps, FIRST=mixer.first, AHEAD=self.configs.ahead,
            AHEAD_B=self.configs.ahead_b, LINE=self.configs.line, num_stages=mixer.stages, num_warps=mixer.warps,
            **({"maxnreg": mixer.registers} if mixer.registers else {}), **self.launch,
        )  # fmt: skip


def launch_options(device: torch.device, dtype: torch.dtype) -> dict:
    """Return the launch options of all kernels: from Hopper on, a bfloat16 kernel starts while the previous one ends.

    In float32, cuBLAS runs between the kernels and does not take part in programmatic dependent launch.
    """
    chained = device.type == "cuda" and dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"CHAINED": True, "launch_pdl": True} if chained else {"CHAINED": False}


def matmul_options(config: MatmulConfig) -> dict:
    """Return the keyword arguments of a matrix product's kernel."""
    blocks = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "EARLY": config.early}
    return {**blocks, "num_stages": config.stages, "num_warps": config.warps}


def linear(x_MK: Tensor, weight_NK: Tensor, out: Tensor, config: MatmulConfig, launch: dict, line: int = 64) -> None:
    """Write x weight^T to `out`: (M, N), or parts of the sum (S, M, N).

    In bfloat16 by the kernel, whose sums leave in the type of `out`; in float32 by cuBLAS, whose products are exact.
    """
    (rows, inner), cols = x_MK.shape, weight_NK.shape[0]
    split = out.shape[0] if out.dim() == 3 else 1
    if x_MK.dtype == torch.float32:
        torch.mm(x_MK, weight_NK.t(), out=out.view(rows, cols))
        return
    grid = (triton.cdiv(cols, config.block_n), split, triton.cdiv(rows, config.block_m))
    kernels.linear_kernel[grid](
        x_MK, weight_NK, out, rows, cols, INNER=inner, SPLIT=split, **matmul_options(config), LINE=line, **launch
    )  # fmt: skip


def sample_codes(
    config: AiMConfig, buffers: Buffers, warps: int, launch: dict, weights: StaticWeights, tensors: tuple, sizes: dict
) -> None:
    """Enqueue the kernels that sample one code per image, store the next step's input and increment the step.

    Args:
        config: `vocab_size`, `num_tokens` and `d_model` are used.
        buffers: logits, options, random numbers, and the memory for the code.
        warps: of the program that makes the choice.
        launch: launch options of kernels.
        weights: `words` and `positions` are used.
        tensors: memory for the input, of `TritonStep._entrance`.
        sizes: constants, of `TritonStep._entrance`.
    """
    options = buffers.scale_T, buffers.temperature, buffers.top_k
    candidates = buffers.values_BCS, buffers.places_BCS, buffers.bounds_B3C
    _, chunks, slots = buffers.values_BCS.shape
    few = buffers.images * chunks <= FEW_PROGRAMS
    parts = {"SLOTS": slots, "CHUNKS": chunks, "GUIDED": buffers.guided}
    kernels.top_candidates_kernel[buffers.images, triton.cdiv(config.vocab_size, buffers.chunk)](
        buffers.logits_MV, buffers.sampled, buffers.step, *options, buffers.diverged, *candidates, config.vocab_size,
        buffers.images, CHUNK=buffers.chunk, **parts, num_warps=CANDIDATE_WARPS[0 if few else 1], **launch,
    )  # fmt: skip
    kernels.sample_token_kernel[(buffers.images,)](
        buffers.logits_MV, buffers.codes_BT, buffers.sampled, buffers.done, buffers.uniform_BT, *options, buffers.top_p,
        *candidates, buffers.offset, weights.words, weights.words if weights.positions is None else weights.positions,
        *tensors, config.vocab_size, config.num_tokens, buffers.images, config.d_model, EPS,
        POSITIONS=weights.positions is not None, BLOCK_D=sizes["BLOCK"], **{**sizes, "BLOCK": buffers.chunk * chunks},
        **parts, num_warps=warps, **launch,
    )  # fmt: skip
