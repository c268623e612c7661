"""From the logits of a step to its codes: candidates of all chunks, then the filters and the draw among them."""

import triton

from aim_lightning.models import AiMConfig
from aim_lightning.sampling.fast import kernels
from aim_lightning.sampling.fast.buffers import Buffers

ALONE = 128  # programs, each of which has a multiprocessor to itself
SIFT_WARPS = 8, 2  # of a program that is alone, and of one that is not: fewer warps spend fewer instructions


def draw(config: AiMConfig, buffers: Buffers, warps: int, launch: dict) -> None:
    """One code for every image, and the step moves on.

    Args:
        config: gives the numbers of codes, `vocab_size` and `num_tokens`.
        buffers: logits, options, uniform numbers, and where the code goes.
        warps: of the program that draws.
        launch: how kernels are launched.
    """
    options = buffers.scale_T, buffers.temperature, buffers.top_k
    candidates = buffers.values_BCS, buffers.places_BCS, buffers.bounds_B3C
    _, chunks, slots = buffers.values_BCS.shape
    few = buffers.images * chunks <= ALONE
    sizes = {"SLOTS": slots, "CHUNKS": chunks, "GUIDED": buffers.guided}
    kernels.sift_kernel[buffers.images, triton.cdiv(config.vocab_size, buffers.chunk)](
        buffers.logits_MV, buffers.step, *options, buffers.diverged, *candidates, config.vocab_size, buffers.images,
        CHUNK=buffers.chunk, **sizes, num_warps=SIFT_WARPS[0 if few else 1], **launch,
    )  # fmt: skip
    kernels.choose_kernel[(buffers.images,)](
        buffers.logits_MV, buffers.codes_BT, buffers.step, buffers.done, buffers.uniform_BT, *options, buffers.top_p,
        *candidates, config.vocab_size, config.num_tokens, buffers.images, BLOCK=buffers.chunk * chunks, **sizes,
        num_warps=warps, **launch,
    )  # fmt: skip
