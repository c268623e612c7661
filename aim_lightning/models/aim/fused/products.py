"""Matrix products whose result is float32 although the operands are bf16."""

import torch
from torch import Tensor


def product_float32(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """Return a @ b in float32, straight from the accumulators where the device can.

    Rounding a weight's gradient to bf16 in every micro-batch would cost accuracy and a pass over memory.
    """
    if a_MK.dtype == torch.float32:
        return a_MK @ b_KN
    if a_MK.is_cuda:
        return torch.mm(a_MK, b_KN, out_dtype=torch.float32)
    return a_MK.float() @ b_KN.float()
