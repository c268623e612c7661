"""What benchmarks/tune_sampling.py may try: shapes that differ from given ones in a few fields.

Fields of one kernel are changed together, since blocks, stages and warps share its registers and shared memory.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from aim_lightning.models import AiMConfig
from aim_lightning.sampling.fast.buffers import PARTS
from aim_lightning.sampling.fast.kernel_configs import (
    BUFFER_BYTES,
    SHARED_BYTES,
    MatmulConfig,
    MixerKernelConfig,
    Shapes,
)

# How often each kernel's fields are changed, by what its time is of a step and how much there is to choose.
OFTEN = {"mix": 0.34, "out": 0.25, "project": 0.18, "fetch": 0.13, "head": 0.08, "choose_warps": 0.02}
PRODUCT = {"tall": (16, 32, 64, 128), "wide": (16, 32, 64, 128), "deep": (64, 128, 256, 512)}
PRODUCT |= {"stages": (2, 3, 4, 5, 6, 7), "warps": (2, 4, 8), "early": (False, True)}
MIX = {
    "heads": (1, 2, 3, 4, 6, 8, 12, 16),
    "steps": (4, 8, 16, 32, 64),
    "stages": (2, 3, 4, 5, 6),
    "warps": (1, 2, 4, 8),
}
MIX |= {"registers": (0, 64, 80, 96, 112, 128, 144, 168, 192), "products": (False, True), "first": (False, True)}
FETCH = {"ahead": (0, 8, 16, 32, 64, 96, 128, 256), "ahead_b": (0, 16, 32, 64, 128), "line": (16, 32, 64)}
FETCH |= {"vectors": (False, True)}
FIELDS = 1, 1, 2, 3  # that one trial changes, one of these numbers
THREAD_VALUES = 256  # of a block that a thread may hold, and of a sum half of them: more spills


def trial(rng: random.Random, found: Shapes) -> Shapes:
    """Other shapes near `found`, which `allowed` may refuse."""
    (kernel,) = rng.choices(list(OFTEN), list(OFTEN.values()))
    if kernel == "choose_warps":
        return replace(found, choose_warps=_near(rng, (4, 8, 16, 32), found.choose_warps))
    if kernel == "fetch":
        return _changed(rng, found, FETCH)
    if kernel == "mix":
        return replace(found, mix=_changed(rng, found.mix, MIX))
    if kernel == "out" and rng.random() < 0.4:
        found = replace(found, split=_near(rng, range(1, PARTS + 1), found.split))
    return replace(found, **{kernel: _changed(rng, getattr(found, kernel), PRODUCT)})


def _changed(rng: random.Random, fields, choices: dict[str, Sequence]):
    """A dataclass with some of its fields a little different."""
    names = rng.sample(list(choices), rng.choice(FIELDS))
    return replace(fields, **{name: _near(rng, choices[name], getattr(fields, name)) for name in names})


def _near(rng: random.Random, choices: Sequence, value):
    """One of the two choices on either side, or any where the value is none of them."""
    if value not in choices:
        return rng.choice(choices)
    place = choices.index(value) + rng.choice((-2, -1, 1, 2))
    return choices[max(0, min(len(choices) - 1, place))]


def allowed(shapes: Shapes, config: AiMConfig, rows: int, shared: int = SHARED_BYTES) -> bool:
    """Whether the decoder would take them as they are on a GPU of `shared` bytes, and a thread's values fit into its
    registers."""
    out, project, head = shapes.out, shapes.project, shapes.head
    inner = (out, config.d_inner / shapes.split), (project, config.d_model), (head, config.d_model)
    return (
        _mix_allowed(shapes.mix, config)
        and all(_product_allowed(product, count, rows, shared) for product, count in inner)
        and not head.early
        and config.d_inner % (shapes.split * out.deep) == 0
        and (shapes.split > 1 or not out.early)
    )


def _mix_allowed(mix: MixerKernelConfig, config: AiMConfig) -> bool:
    columns = 1 << (mix.heads * config.headdim - 1).bit_length()
    block = mix.steps * (columns + config.d_state)
    return (
        config.nheads % mix.heads == 0
        and (mix.products or not mix.first)
        and (mix.steps >= 16 or not mix.products)
        and (mix.stages - 1) * block * 2 <= BUFFER_BYTES
        and mix.steps * columns <= THREAD_VALUES * mix.warps * 32
    )


def _product_allowed(product: MatmulConfig, inner: float, rows: int, shared: int) -> bool:
    lines, threads = 2 * (product.tall + product.wide), product.warps * 32
    return (
        product.tall <= max(16, 1 << (rows - 1).bit_length())
        and inner % product.deep == 0
        and lines * (inner if product.early else product.deep * (product.stages - 1)) <= shared
        and product.tall * product.wide <= THREAD_VALUES // 2 * threads
        and product.wide * product.deep <= 2 * THREAD_VALUES * threads
    )
