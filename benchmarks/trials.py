"""Proposals of benchmarks/tune_sampling.py: kernel configurations that differ from others in a few fields.

Fields of one kernel are changed together, since blocks, stages and warps share its registers and shared memory.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from aim_lightning.models import AiMConfig
from aim_lightning.sampling.fast.buffers import LEAST_COLUMNS, PARTS
from aim_lightning.sampling.fast.kernel_configs import (
    LEAST_EARLY_ROWS,
    LEAST_ROWS,
    SHARED_BYTES,
    KernelConfigs,
    MatmulConfig,
    MixerKernelConfig,
    early_fits,
    mixer_fits,
    padded_columns,
    stage_bytes,
)

# How often each kernel's fields are changed, by its share of a step's time and its number of choices.
OFTEN = {"mix": 0.34, "out": 0.2, "project": 0.22, "fetch": 0.11, "head": 0.06, "advance": 0.05, "sample": 0.02}
PRODUCT = {"block_m": (8, 16, 32, 64, 128), "block_n": (8, 16, 32, 64, 128), "block_k": (64, 128, 256, 512)}
PRODUCT |= {"stages": (2, 3, 4, 5, 6, 7), "warps": (2, 4, 8), "early": (False, True), "streamed": (0, 1, 2, 3, 4, 5, 6)}
ADVANCE = {"warps": (4, 8, 16), "registers": (0, 32, 40, 48, 64, 80)}
MIX = {"heads": (1, 2, 3, 4, 6, 8, 12, 16), "steps": (32, 64, 128, 256), "stages": (2, 3, 4, 5, 6)}
MIX |= {"warps": (1, 2, 4, 8), "registers": (0, 64, 80, 96, 112, 128, 144, 168, 192, 208), "fragments": (False, True)}
STATE = {"columns": (8, 16, 32, 64), "warps": (1, 2, 4, 8)}
FETCH = {"ahead": (0, 8, 16, 32, 64, 96, 128, 256), "ahead_b": (0, 16, 32, 64, 128), "line": (16, 32, 64)}
SPLITS = 1, 2, 3, 4  # of out_proj
RESPLIT = 0.3  # of the trials of out_proj change its split
SAMPLE = {"sample_warps": (4, 8, 16, 32)}
FIELDS = 1, 1, 2, 3  # that one trial changes, one of these numbers
THREAD_VALUES = 256  # of a block that a thread may hold, and of a sum half of them: more spills


def trial(rng: random.Random, configs: KernelConfigs) -> KernelConfigs:
    """Return other configurations near these, which `allowed` may refuse."""
    (kernel,) = rng.choices(list(OFTEN), list(OFTEN.values()))
    if kernel == "sample":
        return _changed(rng, configs, SAMPLE)
    if not configs.dual and kernel in ("mix", "fetch"):
        return replace(configs, state=_changed(rng, configs.state, STATE))
    if kernel == "fetch":
        return _changed(rng, configs, FETCH)
    if kernel == "mix":
        return replace(configs, mix=_changed(rng, configs.mix, MIX))
    choices = ADVANCE if kernel == "advance" else PRODUCT
    new = replace(configs, **{kernel: _changed(rng, getattr(configs, kernel), choices)})
    if kernel == "out" and rng.random() < RESPLIT:
        new = replace(new, split=_near(rng, SPLITS, configs.split))
    return new


def _changed(rng: random.Random, fields, choices: dict[str, Sequence]):
    """Return a dataclass with some of its fields changed to neighbouring values."""
    names = rng.sample(list(choices), min(len(choices), rng.choice(FIELDS)))
    return replace(fields, **{name: _near(rng, choices[name], getattr(fields, name)) for name in names})


def _near(rng: random.Random, choices: Sequence, value):
    """Return one of the two choices on either side, or any where the value is not among them."""
    if value not in choices:
        return rng.choice(choices)
    index = choices.index(value) + rng.choice((-2, -1, 1, 2))
    return choices[max(0, min(len(choices) - 1, index))]


def allowed(configs: KernelConfigs, config: AiMConfig, rows: int, shared: int = SHARED_BYTES) -> bool:
    """Return if a GPU of `shared` bytes takes them unchanged, and a thread's values fit into registers."""
    part = config.d_inner / configs.split
    inner = (configs.out, part), (configs.project, config.d_model), (configs.head, config.d_model)
    return (
        _mixer_allowed(configs.mix, config)
        and all(_matmul_allowed(matmul, count, rows, shared) for matmul, count in inner)
        and configs.split <= PARTS
        and configs.state.columns >= LEAST_COLUMNS
        and config.headdim % configs.state.columns == 0
    )


def _mixer_allowed(mixer: MixerKernelConfig, config: AiMConfig) -> bool:
    block = mixer.steps * padded_columns(mixer, config)
    return (
        config.nheads % mixer.heads == 0
        and mixer_fits(mixer, config)
        and (mixer.fragments or block <= THREAD_VALUES * mixer.warps * 32)
    )


def _matmul_allowed(matmul: MatmulConfig, inner: float, rows: int, shared: int) -> bool:
    threads, sums = matmul.warps * 32, matmul.block_m * matmul.block_n
    least = LEAST_EARLY_ROWS if matmul.early else LEAST_ROWS
    if inner % matmul.block_k or not least <= matmul.block_m <= max(least, 1 << (rows - 1).bit_length()):
        return False
    if matmul.early:
        return not matmul.streamed and early_fits(matmul, inner)
    buffers = matmul.stages if matmul.streamed else matmul.stages - 1
    return (
        matmul.streamed <= min(matmul.stages, inner // matmul.block_k)
        and stage_bytes(matmul) * buffers <= shared
        and sums <= THREAD_VALUES // 2 * threads
        and (matmul.streamed > 0 or matmul.block_n * matmul.block_k <= 2 * THREAD_VALUES * threads)
    )
