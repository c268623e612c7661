"""Launch configurations of the kernels: blocks, warps and buffers, as measured on an H200.

They determine speed, and rounding: in bfloat16 a random number at the edge of two codes depends on them, as it does on
the size of a batch. They are therefore a table, and never measured when a decoder is built.
"""

import json
import math
from dataclasses import dataclass, replace
from importlib.resources import files

import torch

from aim_lightning.models import AiMConfig
from aim_lightning.sampling.fast.buffers import CODES_PER_CHUNK, LONG, PARTS

SHARED_BYTES = 200 * 1024  # at most, for a product's blocks
SPARE_BYTES = 8 * 1024  # shared memory for everything else: an H100 has 227 KiB
EARLY_BYTES = 4 * 200  # of a thread's registers at most, for early weights and x
LEAST_ROWS, LEAST_EARLY_ROWS = 16, 8  # of a product's block: x is its first factor, or early weights are
BUFFER_BYTES = 80 * 1024  # at most, for the mixer kernel's blocks: fits the 99 KiB of smaller GPUs too
SPAN_REGISTERS = 192  # at most, of a thread, for packed x and B; B's are free before the second half of x is used
STATE_BLOCK = 32  # of the d_state values of a state, those that the mixer kernel reads at a time
WIDEST_STATE = 128 * 128  # values of a head's state up to which `chunk_kernel` fits every GPU; wider ones recur


@dataclass(frozen=True)
class MatmulConfig:
    """Launch configuration of a matrix product (M, K) x (K, N): block sizes, pipeline stages, warps.

    early: a program holds all its weights in registers and reads them before the previous kernel ends, where they fit.
    streamed: if not early, blocks of the weight that are copied to shared memory before the previous kernel ends. With
    0, weights are prefetched into the cache and read by Triton's pipeline. A streamed product may have more stages than
    blocks, which keeps other programs off the multiprocessor.
    """

    block_m: int
    block_n: int
    block_k: int
    stages: int
    warps: int
    early: bool = False
    streamed: int = 0


@dataclass(frozen=True)
class MixerKernelConfig:
    """Launch configuration of the mixer kernel.

    heads: per program; steps: past codes per block, at least 32 packed ones; stages: of the pipeline, which loads
    stages - 1 blocks ahead; registers: at most per thread (0: any number). fragments: before the previous kernel ends,
    a program loads B of `steps` codes and x of their first half into registers, and `stages` has no effect
    (`fragment_mixer_kernel`); else blocks go through shared memory (`mixer_kernel`).
    """

    heads: int
    steps: int
    stages: int
    warps: int
    registers: int = 0
    fragments: bool = False


@dataclass(frozen=True)
class AdvanceConfig:
    """Launch configuration of `advance_kernel`: warps, and registers per thread at most (0: any)."""

    warps: int
    registers: int = 0


@dataclass(frozen=True)
class StateKernelConfig:
    """Launch configuration of the recurrence's kernel: columns of one head per program, and warps."""

    columns: int
    warps: int


FLOAT32_MIXER = MixerKernelConfig(1, 64, 2, 4)  # by sums: tensor cores would round float32 to TF32


@dataclass(frozen=True)
class KernelConfigs:
    """Launch configurations of all kernels of a step; the fields are the keys of kernel_configs.json.

    split: programs that share the inner dimension of out_proj. dual: codes up to which the mixer sums over all past
    codes, beyond which it takes states at the ends of chunks (both `mix`); 0: the recurrence for any number (`state`).
    ahead: past codes whose x the mixer kernel prefetches before the previous kernel ends; ahead_b: those whose B it
    prefetches. line: values between two prefetched addresses. sample_warps: of sample_token.
    """

    project: MatmulConfig
    out: MatmulConfig
    split: int
    head: MatmulConfig
    mix: MixerKernelConfig
    state: StateKernelConfig
    dual: int
    ahead: int
    ahead_b: int
    line: int
    sample_warps: int
    advance: AdvanceConfig


def table() -> dict[tuple[int, int], KernelConfigs]:
    """Return the measured configurations by (d_model, rows); rows are images, twice as many with guidance."""
    stored = json.loads((files(__package__) / "kernel_configs.json").read_text())
    return {tuple(map(int, key.split("x"))): decode(value) for key, value in stored.items()}


def decode(value: dict) -> KernelConfigs:
    """Build the configurations from a row of the JSON file."""
    kinds = dict.fromkeys(("project", "out", "head"), MatmulConfig)
    kinds |= {"mix": MixerKernelConfig, "state": StateKernelConfig, "advance": AdvanceConfig}
    return KernelConfigs(**value | {name: kind(*value[name]) for name, kind in kinds.items()})


def shared_bytes(device: torch.device) -> int:
    """Return the shared memory that a product's blocks may take on a device."""
    if device.type != "cuda":
        return SHARED_BYTES
    return min(SHARED_BYTES, torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor - SPARE_BYTES)


def kernel_configs_for(config: AiMConfig, rows: int, dtype: torch.dtype, shared: int = SHARED_BYTES) -> KernelConfigs:
    """Return the nearest measured configurations, reduced to what the network and the shared memory (bytes) allow."""
    measured = table()
    # The rows count twice: they change the bottleneck.
    distance = lambda key: abs(math.log(key[0] / config.d_model)) + 2 * abs(math.log(key[1] / rows))  # noqa: E731
    nearest = measured[min(measured, key=distance)]
    block_m = 1 << (rows - 1).bit_length()
    exact = dtype == torch.float32
    split = 1 if exact else _fitting_split(nearest, config)
    return replace(
        nearest,
        project=_fitting_matmul(nearest.project, block_m, config.d_model, shared),
        out=_fitting_matmul(nearest.out, block_m, config.d_inner / split, shared),
        split=split,
        head=_fitting_matmul(nearest.head, block_m, config.d_model, shared),
        state=replace(nearest.state, columns=min(nearest.state.columns, config.headdim)),
        mix=_fitting_mixer(FLOAT32_MIXER if exact else nearest.mix, config),
        sample_warps=nearest.sample_warps if config.vocab_size > 4096 else 4,
    )


def stored_codes(config: AiMConfig, rows: int, dtype: torch.dtype) -> int:
    """Return how many past codes a layer stores: all, those of a chunk, or 0, which stands for the recurrence."""
    dual = kernel_configs_for(config, rows, dtype).dual
    if config.num_tokens <= dual:
        return config.num_tokens
    return CODES_PER_CHUNK if dual and config.headdim * config.d_state <= WIDEST_STATE else 0


def _fitting_matmul(matmul: MatmulConfig, block_m: int, inner: float, shared: int) -> MatmulConfig:
    """Reduce rows and stages to those that fit; read weights early, or stream them, only where they fit."""
    matmul = replace(matmul, block_m=max(LEAST_EARLY_ROWS, min(matmul.block_m, block_m)))
    if matmul.early and early_fits(matmul, inner):
        return replace(matmul, streamed=0)
    matmul = replace(matmul, block_m=max(LEAST_ROWS, matmul.block_m), early=False)
    fitting = int(shared // stage_bytes(matmul))
    if matmul.streamed and fitting >= 2 and inner % matmul.block_k == 0:  # copies have no mask of inner values
        stages = min(matmul.stages, fitting)
        return replace(matmul, stages=stages, streamed=min(matmul.streamed, stages, int(inner // matmul.block_k)))
    # All stages of Triton's pipeline but one are buffers in shared memory; it has at least two.
    return replace(matmul, stages=min(matmul.stages, max(2, 1 + fitting)), streamed=0)


def stage_bytes(matmul: MatmulConfig) -> int:
    """Return the shared memory of a block of x and one of the weight."""
    return 2 * (matmul.block_m + matmul.block_n) * matmul.block_k


def early_fits(matmul: MatmulConfig, inner: float) -> bool:
    """Return if a program's weights and x fit into its registers; each warp has a part of the inner dimension."""
    values = (matmul.block_m + matmul.block_n) * inner
    return inner % (32 * matmul.warps) == 0 and 2 * values <= EARLY_BYTES * 32 * matmul.warps


def _fitting_split(configs: KernelConfigs, config: AiMConfig) -> int:
    """Return the measured number of parts of out_proj's sum, or the largest that divides this network's blocks."""
    for split in (configs.split, *range(PARTS, 1, -1)):
        if config.d_inner % (split * configs.out.block_k) == 0:
            return split
    return 1


def _fitting_mixer(mixer: MixerKernelConfig, config: AiMConfig) -> MixerKernelConfig:
    """Reduce the heads per program until they divide the network's heads and their inputs fit."""
    while mixer.heads > 1 and (config.nheads % mixer.heads or not mixer_fits(mixer, config)):
        mixer = replace(mixer, heads=mixer.heads // 2)
    return mixer


def mixer_fits(mixer: MixerKernelConfig, config: AiMConfig) -> bool:
    """Return if the stored inputs that a program holds fit into registers or shared memory."""
    if mixer.fragments:
        values = mixer.steps * (padded_columns(mixer, config) + config.d_state)
        return values <= 4 * SPAN_REGISTERS * 32 * mixer.warps
    return buffer_bytes(mixer, config) <= BUFFER_BYTES


def padded_columns(mixer: MixerKernelConfig, config: AiMConfig) -> int:
    """Return the columns of x per program, padded to a power of two."""
    return 1 << (mixer.heads * config.headdim - 1).bit_length()


def buffer_bytes(mixer: MixerKernelConfig, config: AiMConfig) -> int:
    """Return the bytes of the blocks that are loaded: packed x and B, or those of the state where they are larger."""
    columns = padded_columns(mixer, config)
    state = 2 * STATE_BLOCK * columns if config.num_tokens > LONG else 0
    return (mixer.stages - 1) * max(mixer.steps * (columns + config.d_state), state)
