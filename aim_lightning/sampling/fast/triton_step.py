"""One step of the fast decoder on an NVIDIA GPU: Triton kernels and matrix products, suited to graph capture."""

import torch
import triton
from torch import Tensor

from aim_lightning.models import AiMConfig
from aim_lightning.sampling.fast import kernels
from aim_lightning.sampling.fast.buffers import Buffers
from aim_lightning.sampling.fast.kernel_configs import kernel_configs_for, shared_bytes
from aim_lightning.sampling.fast.launches import launch_options, linear, product_kernel, sample_codes
from aim_lightning.sampling.fast.static_weights import StaticWeights
from aim_lightning.sampling.fast.torch_step import EPS


class TritonStep:
    """Enqueue one more code for every image when called; nothing is read back, so that the step can be captured."""

    def __init__(self, config: AiMConfig, weights: StaticWeights, buffers: Buffers) -> None:
        self.config, self.weights, self.buffers = config, weights, buffers
        self.block, device = triton.next_power_of_2(config.d_model), buffers.codes_BT.device
        self.configs = configs = kernel_configs_for(config, buffers.rows, buffers.dtype, shared_bytes(device))
        # The norm after the mixer needs a sum over the complete row: each program of a row leaves one part of it.
        self.parts = config.nheads // configs.mix.heads if buffers.stored else config.d_inner // configs.state.columns
        self.out = buffers.out_SMD[: configs.split]
        self.sizes = {"INNER": config.d_inner, "H": config.nheads, "N": config.d_state}
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
        sample_codes(self.config, buffers, self.configs, self.launch, weights, *self._entrance())

    def end_chunk(self) -> None:
        """Add the stored codes to the states, before the step of the next chunk's first code."""
        config, tile = self.config, self.config.d_state * self.config.headdim
        for cache in self.buffers.layers:
            kernels.chunk_kernel[self.buffers.rows, config.nheads](
                cache.x_MTI, cache.b_MTN, cache.g_MHT, cache.decay_MH, cache.state_MNI, self.buffers.step, **self.sizes,
                P=config.headdim, CHUNK=self.buffers.codes_per_chunk, num_warps=min(16, max(4, tile // 1024)),
            )  # fmt: skip

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
        return tensors, {"ROWS": self.config.modulation_rows, "MODULATED": rows is not None, "BLOCK_D": self.block}

    def _advance(self, i: int) -> None:
        buffers, gate, (norm, rows, final) = self.buffers, self._layer_rows(i), self._after(i)
        config, cache = self.config, buffers.layers[i]
        heads = self.configs.mix.heads if buffers.stored else 0
        kernels.advance_kernel[buffers.rows, 1 + self.parts * (heads > 0)](
            self.out, buffers.squares, buffers.residual_MD, buffers.h_MD if gate is None else gate, norm,
            buffers.h_MD if rows is None else rows, norm if final is None else final, buffers.h_MD, buffers.x_MI,
            buffers.b_MN, buffers.dt_MH, cache.x_MTI, cache.b_MTN, cache.g_MHT, cache.decay_MH,
            self.weights.layers[i].a_log, buffers.step, config.d_model, EPS, buffers.rows, buffers.stored,
            GATE_ROWS=config.modulation_rows, ROWS=1 if rows is None else rows.shape[1], MODULATED=rows is not None,
            FINAL=final is not None, PARTS=self.parts, PARTS_BLOCK=triton.next_power_of_2(self.parts),
            SPLIT=self.configs.split, BLOCK=self.block, HEADS=heads, **self.sizes, P=config.headdim,
            CHUNK=buffers.codes_per_chunk, num_warps=self.configs.advance.warps,
            maxnreg=self.configs.advance.registers or None, **self.launch,
        )  # fmt: skip

    def _project(self, i: int) -> None:
        """Enqueue in_proj with convolution: one kernel in bfloat16, exact cuBLAS and a kernel in float32."""
        buffers, layer, config = self.buffers, self.weights.layers[i], self.config
        cols = layer.in_proj.shape[0]
        if buffers.dtype == torch.float32:
            linear(buffers.h_MD, layer.in_proj, buffers.zxbcdt, self.configs.project, self.launch)
            grid = (triton.cdiv(cols, 512), buffers.rows)
            kernels.activate_kernel[grid](
                buffers.zxbcdt, *self._inner(i), **self.sizes, TAPS=config.d_conv, BLOCK_N=512
            )  # fmt: skip
            return
        matmul = self.configs.project
        kernel, options = product_kernel("in_proj", buffers.h_MD.device, matmul, self.launch, self.configs.line)
        kernel[triton.cdiv(cols, matmul.block_n), triton.cdiv(buffers.rows, matmul.block_m)](
            buffers.h_MD, layer.in_proj, *self._inner(i), D=config.d_model, **self.sizes, TAPS=config.d_conv, **options
        )  # fmt: skip

    def _inner(self, i: int) -> tuple:
        """Return the tensors of mixer i that its input kernels read and write, without the product."""
        buffers, layer, cache = self.buffers, self.weights.layers[i], self.buffers.layers[i]
        return (
            cache.ring, layer.conv_weight, layer.conv_bias, layer.dt_bias, buffers.gate_MI, buffers.x_MI, buffers.b_MN,
            buffers.c_MN, buffers.dt_MH, buffers.step, buffers.rows,
        )  # fmt: skip

    def _mix(self, i: int) -> None:
        buffers, layer, cache, config = self.buffers, self.weights.layers[i], self.buffers.layers[i], self.config
        inputs = buffers.gate_MI, buffers.x_MI, buffers.b_MN, buffers.c_MN, buffers.dt_MH
        outputs = layer.a_log, layer.d, layer.gated_norm, buffers.y_MI, buffers.squares, buffers.step
        if not buffers.stored:
            state = self.configs.state
            kernels.state_kernel[buffers.rows, self.parts](
                *inputs, cache.state_MIN, *outputs, **self.sizes, P=config.headdim, COLUMNS=state.columns,
                num_warps=state.warps, **self.launch,
            )  # fmt: skip
            return
        mixer, stored = self.configs.mix, buffers.stored
        kernel, sizes = kernels.mixer_kernel, {"STEPS": mixer.steps}
        if mixer.fragments:
            steps = min(mixer.steps, max(32, triton.next_power_of_2(stored)))
            kernel, sizes = kernels.fragment_mixer_kernel, {"STEPS": steps, "MORE": stored > steps}
        state = buffers.h_MD if cache.state_MNI is None else cache.state_MNI
        kernel[(buffers.rows, self.parts)](
            *inputs, cache.x_MTI, cache.b_MTN, cache.g_MHT, cache.decay_MH, state, *outputs, stored, **self.sizes,
            **sizes, P=config.headdim, HEADS=mixer.heads, CHUNK=buffers.codes_per_chunk, AHEAD=self.configs.ahead,
            AHEAD_B=self.configs.ahead_b, LINE=self.configs.line, num_stages=mixer.stages, num_warps=mixer.warps,
            maxnreg=mixer.registers or None, **self.launch,
        )  # fmt: skip
