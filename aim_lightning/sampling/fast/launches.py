"""Launches of the fast decoder's kernels that do not depend on a layer: matrix products and sampling."""

import torch
import triton
from torch import Tensor

from aim_lightning.models import AiMConfig
from aim_lightning.sampling.fast import kernels
from aim_lightning.sampling.fast.buffers import Buffers
from aim_lightning.sampling.fast.kernel_configs import KernelConfigs, MatmulConfig
from aim_lightning.sampling.fast.static_weights import StaticWeights
from aim_lightning.sampling.fast.torch_step import EPS

FEW_PROGRAMS = 128  # up to this number, each program has a multiprocessor of its own
CANDIDATE_WARPS = 8, 2  # for few programs, and for many: fewer warps spend fewer instructions


def launch_options(device: torch.device, dtype: torch.dtype) -> dict:
    """Return the launch options of all kernels: from Hopper on, a bfloat16 kernel starts while the previous one ends.

    In float32, cuBLAS runs between the kernels and does not take part in programmatic dependent launch.
    """
    chained = device.type == "cuda" and dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"CHAINED": True, "launch_pdl": True} if chained else {"CHAINED": False}


def product_kernel(
    name: str, device: torch.device, config: MatmulConfig, launch: dict, line: int
) -> tuple[triton.runtime.JITFunction, dict]:
    """Return the kernel of a matrix product and its keyword arguments.

    Products are streamed on NVIDIA GPUs alone, where this Triton has the kernel.

    Args:
        name: "in_proj" or "linear".
        device: of the product.
        config: the kernel's form and blocks.
        launch: launch options of kernels.
        line: values between two prefetched addresses.
    """
    blocks = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
    options = {**blocks, **launch, "num_warps": config.warps}
    streamed = getattr(kernels, f"{name}_streamed_kernel")
    if config.streamed and streamed and device.type == "cuda" and torch.version.cuda:
        return streamed, {**options, "STAGES": config.stages, "EARLY": config.streamed, "WARPS": config.warps}
    early = config.warps if config.early else 0
    return getattr(kernels, f"{name}_kernel"), {**options, "EARLY": early, "LINE": line, "num_stages": config.stages}


def linear(x_MK: Tensor, weight_NK: Tensor, out: Tensor, config: MatmulConfig, launch: dict, line: int = 64) -> None:
    """Write x weight^T to `out`: (M, N), or parts of the sum (S, M, N).

    The kernel computes products of bfloat16 values; its sums take the type of `out`. cuBLAS computes float32 exactly.
    """
    (rows, inner), cols = x_MK.shape, weight_NK.shape[0]
    split = out.shape[0] if out.dim() == 3 else 1
    if x_MK.dtype == torch.float32:
        torch.mm(x_MK, weight_NK.t(), out=out.view(rows, cols))
        return
    grid = (triton.cdiv(cols, config.block_n), split, triton.cdiv(rows, config.block_m))
    kernel, options = product_kernel("linear", x_MK.device, config, launch, line)
    kernel[grid](x_MK, weight_NK, out, rows, cols, INNER=inner, SPLIT=split, **options)


def sample_codes(
    config: AiMConfig,
    buffers: Buffers,
    configs: KernelConfigs,
    launch: dict,
    weights: StaticWeights,
    tensors: tuple,
    sizes: dict,
) -> None:
    """Enqueue the kernels that sample one code per image, store the next step's input and increment the step.

    Args:
        config: `vocab_size`, `num_tokens` and `d_model` are used.
        buffers: logits, options, random numbers, and the memory for the code.
        configs: `sample_warps` is used.
        launch: launch options of kernels.
        weights: `words` and `positions` are used.
        tensors: memory for the input, of `TritonStep._entrance`.
        sizes: constants, of `TritonStep._entrance`.
    """
    options = buffers.scale_T, buffers.temperature, buffers.top_k
    candidates = buffers.values_BCS, buffers.indices_BCS, buffers.bounds_B3C
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
        POSITIONS=weights.positions is not None, BLOCK=buffers.chunk * chunks, **sizes, **parts,
        num_warps=configs.sample_warps, **launch,
    )  # fmt: skip
