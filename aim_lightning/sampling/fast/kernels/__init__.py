"""Triton kernels of the fast decoder: one step of AiM in four launches per layer (float32: five).

All read the step from memory, so that one captured graph serves every step. Sums are in float32; tensors between
kernels have the weights' type. A layer: in_proj_kernel (convolution included), mixer_kernel, fragment_mixer_kernel or
state_kernel, linear_kernel (out_proj), advance_kernel (residual, norm, stored inputs). A step ends with the logits
(linear_kernel), top_candidates_kernel and sample_token_kernel, which computes the next step's input; enter_kernel
computes the first.
Between two steps, chunk_kernel of every layer ends a chunk of a long sequence.
Near 16 images, in_proj_streamed_kernel and linear_streamed_kernel replace in_proj_kernel and linear_kernel.
In float32, cuBLAS computes the products, and activate_kernel the rest of in_proj_kernel.
"""

from aim_lightning.sampling.fast.kernels.advance import advance_kernel
from aim_lightning.sampling.fast.kernels.candidates import top_candidates_kernel
from aim_lightning.sampling.fast.kernels.common import enter_kernel
from aim_lightning.sampling.fast.kernels.fragment_step import fragment_mixer_kernel
from aim_lightning.sampling.fast.kernels.in_proj import activate_kernel, in_proj_kernel
from aim_lightning.sampling.fast.kernels.mixer_step import mixer_kernel, state_kernel
from aim_lightning.sampling.fast.kernels.products import linear_kernel
from aim_lightning.sampling.fast.kernels.sample_token import sample_token_kernel
from aim_lightning.sampling.fast.kernels.states import chunk_kernel

try:
    from aim_lightning.sampling.fast.kernels.streamed import in_proj_streamed_kernel, linear_streamed_kernel
except ImportError:  # Triton 3.5, of torch 2.9, lacks a part of Gluon
    in_proj_streamed_kernel = linear_streamed_kernel = None

__all__ = [
    "activate_kernel", "advance_kernel", "chunk_kernel", "enter_kernel", "fragment_mixer_kernel", "in_proj_kernel",
    "in_proj_streamed_kernel", "linear_kernel", "linear_streamed_kernel", "mixer_kernel", "sample_token_kernel",
    "state_kernel", "top_candidates_kernel",
]  # fmt: skip
