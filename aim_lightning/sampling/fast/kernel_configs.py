"""Shapes in which the kernels run: blocks, warps and buffers, as benchmarks/tune_sampling.py found them on an H100.

They decide about speed, and about rounding: in bfloat16 a draw at the edge of two codes depends on them, as it does on
the size of a batch. So they are a table, and never measured while a decoder is made.
"""

import json
import math
from dataclasses import dataclass, replace
from importlib.resources import files

import torch

from aim_lightning.models import AiMConfig
from aim_lightning.sampling.fast.buffers import PARTS

SHARED_BYTES = 200 * 1024  # that a product's blocks, or a program's early weights and its x, may take
SPARE_BYTES = 8 * 1024  # shared memory for other things: an H100 has 227 KiB
BUFFER_BYTES = 80 * 1024  # shared memory that a mix kernel's blocks may take: all fits smaller GPUs' 99 KiB too


@dataclass(frozen=True)
class MatmulConfig:
    """A matrix product: rows, columns and inner values of a block, stages of the pipeline, warps.

    early: all of a program's weights are read before its turn, where its part is a whole number of blocks that fit into
    shared memory; else they are on their way to the cache by then, and read block by block.
    """

    tall: int
    wide: int
    deep: int
    stages: int
    warps: int
    early: bool = False


@dataclass(frozen=True)
class MixerKernelConfig:
    """The mix kernel: heads a program, past codes a block, stages, warps, most registers a thread (0: any number).

    products: sums on tensor cores, whose blocks are prefetched in `stages`; else by multiplying and adding.
    first: with products, the first block is read before the kernel's turn (otherwise it always is).
    """

    heads: int
    steps: int
    stages: int
    warps: int
    registers: int = 0
    products: bool = True
    first: bool = False


@dataclass(frozen=True)
class Shapes:
    """All kernels of a step.

    split: programs that share the inner dimension of out_proj. ahead: past codes whose x the mix kernel fetches before
    its turn; ahead_b: those whose B it fetches; vectors: whether it also fetches what the norm and the modulation after
    it multiply by. line: values between two addresses that are fetched.
    """

    project: MatmulConfig
    out: MatmulConfig
    split: int
    head: MatmulConfig
    mix: MixerKernelConfig
    ahead: int
    choose_warps: int
    ahead_b: int = 0
    line: int = 64
    vectors: bool = False


def table() -> dict[tuple[int, int], Shapes]:
    """What was measured, by (d_model, rows): images, twice as many with guidance."""
    stored = json.loads((files(__package__) / "kernel_configs.json").read_text())
    return {tuple(map(int, key.split("x"))): decode(value) for key, value in stored.items()}


def decode(value: dict) -> Shapes:
    """Shapes from JSON."""
    products = {name: MatmulConfig(*value[name]) for name in ("project", "out", "head")}
    return Shapes(**{**value, **products, "mix": MixerKernelConfig(*value["mix"])})


def shared_bytes(device: torch.device) -> int:
    """Shared memory that a product's blocks may take on a device."""
    if device.type != "cuda":
        return SHARED_BYTES
    return min(SHARED_BYTES, torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor - SPARE_BYTES)


def shapes_for(config: AiMConfig, rows: int, dtype: torch.dtype, shared: int = SHARED_BYTES) -> Shapes:
    """The nearest measured shapes, cut to what this network and `shared` bytes of shared memory allow."""
    known = table()
    found = known[min(known, key=lambda key: _distance(key, config, rows))]
    tall = max(16, 1 << (rows - 1).bit_length())
    exact = dtype == torch.float32
    split = 1 if exact else _fitting_split(found, config)
    return replace(
        found,
        project=_fitting_product(found.project, tall, config.d_model, shared),
        out=_fitting_product(found.out, tall, config.d_inner / split, shared),
        head=_fitting_product(found.head, tall, config.d_model, shared),
        split=split,
        mix=_fitting(MixerKernelConfig(1, 64, 2, 4, products=False) if exact else found.mix, config, dtype.itemsize),
        choose_warps=found.choose_warps if config.vocab_size > 4096 else 4,
    )


def _distance(key: tuple[int, int], config: AiMConfig, rows: int) -> float:
    """How far a measured (d_model, rows) lies off; the rows decide more."""
    return abs(math.log(key[0] / config.d_model)) + 2 * abs(math.log(key[1] / rows))


def _fitting_product(product: MatmulConfig, tall: int, inner: float, shared: int) -> MatmulConfig:
    """With no more rows than there are and no more stages than fit; weights read early only where all `inner` values of
    a part fit."""
    product = replace(product, tall=min(product.tall, tall))
    lines = 2 * (product.tall + product.wide)  # bytes an inner value
    early = product.early and inner % product.deep == 0 and lines * inner <= shared
    fitting = product.stages if early else max(2, 1 + int(shared // (lines * product.deep)))  # all but one are buffers
    return replace(product, stages=min(product.stages, fitting), early=early)


def _fitting_split(found: Shapes, config: AiMConfig) -> int:
    """The measured number of parts of out_proj's sum, or the largest that divides this network's blocks."""
    for split in (found.split, *range(PARTS, 1, -1)):
        if config.d_inner % (split * found.out.deep) == 0:
            return split
    return 1


def _fitting(mix: MixerKernelConfig, config: AiMConfig, size: int) -> MixerKernelConfig:
    """With as many heads a program as divide the network's and as shared memory takes."""
    heads = mix.heads
    while heads > 1 and (config.nheads % heads or _buffer_bytes(mix, heads, config, size) > BUFFER_BYTES):
        heads //= 2
    return replace(mix, heads=heads)


def _buffer_bytes(mix: MixerKernelConfig, heads: int, config: AiMConfig, size: int) -> int:
    """Of the blocks of x and B that are under way at a time; a block is padded to a power of two."""
    columns = 1 << (heads * config.headdim - 1).bit_length()
    return (mix.stages - 1) * mix.steps * (columns + config.d_state) * size
