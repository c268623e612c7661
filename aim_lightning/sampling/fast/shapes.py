"""Shapes in which the kernels run: blocks, warps and buffers, as benchmarks/tune_sampling.py found them on an H100.

They decide about speed, and about rounding: in bfloat16 a draw at the edge of two codes depends on them, as it does on
the size of a batch. So they are a table, and never measured while a decoder is made.
"""

import json
import math
from dataclasses import dataclass
from importlib.resources import files

import torch

from aim_lightning.models import AiMConfig

BUFFER_BYTES = 100 * 1024  # shared memory that a mix kernel's blocks may take: two programs fit a multiprocessor


@dataclass(frozen=True)
class Product:
    """A matrix product: rows, columns and inner values of a block, stages of the pipeline, warps."""

    tall: int
    wide: int
    deep: int
    stages: int
    warps: int


@dataclass(frozen=True)
class Mix:
    """The mix kernel: heads a program, past codes a block, stages, warps, most registers a thread (0: any number)."""

    heads: int
    steps: int
    stages: int
    warps: int
    registers: int = 0


@dataclass(frozen=True)
class Shapes:
    """All kernels of a step.

    split: programs that share the inner dimension of out_proj. few: columns and warps of the kernel that advances and
    projects at once, None where two kernels do it. ahead: past codes that the mix kernel fetches before its turn.
    """

    project: Product
    out: Product
    split: int
    head: Product
    mix: Mix
    few: tuple[int, int] | None
    ahead: int
    choose_warps: int


def table() -> dict[tuple[int, int], Shapes]:
    """What was measured, by (d_model, rows): images, twice as many with guidance."""
    stored = json.loads((files(__package__) / "shapes.json").read_text())
    return {tuple(map(int, key.split("x"))): decode(value) for key, value in stored.items()}


def decode(value: dict) -> Shapes:
    """Shapes from JSON."""
    products = {name: Product(*value[name]) for name in ("project", "out", "head")}
    few = tuple(value["few"]) if value["few"] else None
    return Shapes(**{**value, **products, "mix": Mix(*value["mix"]), "few": few})


def shapes_for(config: AiMConfig, rows: int, dtype: torch.dtype) -> Shapes:
    """The nearest measured shapes, cut to what this network allows."""
    far = lambda key: abs(math.log(key[0] / config.d_model)) + 2 * abs(math.log(key[1] / rows))  # noqa: E731
    nearest = min(known := table(), key=far)
    found, exact = known[nearest], dtype == torch.float32
    tall = max(16, 1 << (rows - 1).bit_length())
    cut = lambda product: Product(min(product.tall, tall), *list(vars(product).values())[1:])  # noqa: E731
    split = found.split if not exact and config.d_inner % (found.split * found.out.deep) == 0 else 1
    return Shapes(
        project=cut(found.project),
        out=cut(found.out),
        split=split,
        head=cut(found.head),
        mix=_fitting(Mix(2, 32, 2, 4) if exact else found.mix, config, dtype.itemsize),
        few=found.few if rows <= 2 and not exact else None,
        ahead=found.ahead,
        choose_warps=found.choose_warps if config.vocab_size > 4096 else 4,
    )


def _fitting(mix: Mix, config: AiMConfig, size: int) -> Mix:
    """With as many heads a program as divide the network's and as shared memory takes."""
    heads, value = mix.heads, lambda heads: mix.steps * (heads * config.headdim + config.d_state) * size
    while heads > 1 and (config.nheads % heads or value(heads) * (mix.stages - 1) > BUFFER_BYTES):
        heads //= 2
    return Mix(heads, mix.steps, mix.stages, mix.warps, mix.registers)
