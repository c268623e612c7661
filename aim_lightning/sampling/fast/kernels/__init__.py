"""Triton kernels of the fast decoder: one step of AiM in four launches a layer (float32: five).

All take the step from memory, so that one captured graph serves every step. Sums are in float32; what passes between
kernels has the weights' type.
"""

from aim_lightning.sampling.fast.kernels.in_proj import activate_kernel, project_kernel
from aim_lightning.sampling.fast.kernels.linear import linear_kernel
from aim_lightning.sampling.fast.kernels.mixer_step import mix_kernel
from aim_lightning.sampling.fast.kernels.norm import advance_kernel, enter_kernel
from aim_lightning.sampling.fast.kernels.sample_token import choose_kernel
from aim_lightning.sampling.fast.kernels.top_candidates import sift_kernel

__all__ = [
    "activate_kernel",
    "advance_kernel",
    "choose_kernel",
    "enter_kernel",
    "linear_kernel",
    "mix_kernel",
    "project_kernel",
    "sift_kernel",
]
