"""Fused training path of AiM in Triton: everything between two matrix products is one kernel.

The products stay in cuBLAS. Sums have fixed orders, so a step repeats to the bit on one kind of GPU.
"""

from aim_lightning.models.aim.fused.loss import fused_cross_entropy
from aim_lightning.models.aim.fused.stack import forward_stack, refusal

__all__ = ["forward_stack", "fused_cross_entropy", "refusal"]
