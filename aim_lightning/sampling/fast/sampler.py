"""From the logits of a step to its codes: candidates of all chunks, then filters and random choice among them."""

import triton

from aim_lightning.models import AiMConfig
from aim_lightning.sampling.fast import kernels
from aim_lightning.sampling.fast.buffers import Buffers

FEW_PROGRAMS = 128  # up to this number, each program has a multiprocessor of its own
CANDIDATE_WARPS = 8, 2  # for few programs, and for many: fewer warps spend fewer instructions


def sample_codes(config: AiMConfig, buffers: Buffers, warps: int, launch: dict) -> None:
    """Enqueue the kernels that sample one code per image and increment the step.

    Args:
        config: `vocab_size` and `num_tokens` are used.
        buffers: logits, options, random numbers, and the memory for the code.
        warps: of the program that makes the choice.
        launch: launch options of kernels.
    """
    options = buffers.scale_T, buffers.temperature, buffers.top_k
    candidates = buffers.values_BCS, buffers.places_BCS, buffers.bounds_B3C
    _, chunks, slots = buffers.values_BCS.shape
    few = buffers.images * chunks <= FEW_PROGRAMS
    sizes = {"SLOTS": slots, "CHUNKS": chunks, "GUIDED": buffers.guided}
    kernels.top_candidates_kernel[buffers.images, triton.cdiv(config.vocab_size, buffers.chunk)](
        buffers.logits_MV, buffers.step, *options, buffers.diverged, *candidates, config.vocab_size, buffers.images,
        CHUNK=buffers.chunk, **sizes, num_warps=CANDIDATE_WARPS[0 if few else 1], **launch,
    )  # fmt: skip
    kernels.sample_token_kernel[(buffers.images,)](
        buffers.logits_MV, buffers.codes_BT, buffers.step, buffers.done, buffers.uniform_BT, *options, buffers.top_p,
        *candidates, config.vocab_size, config.num_tokens, buffers.images, BLOCK=buffers.chunk * chunks, **sizes,
        num_warps=warps, **launch,
    )  # fmt: skip
