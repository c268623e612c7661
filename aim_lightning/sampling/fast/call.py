"""Labels, image numbers and options of one call of the fast decoder."""

import torch
from torch import Tensor

from aim_lightning.sampling.fast.buffers import Buffers
from aim_lightning.utils.random import hash_uniform


class Call:
    """Labels, image numbers and options of a call, which go to the device in one copy.

    Args:
        images: labels per call.
        tokens: codes per image.
        device: of the decoder.
    """

    def __init__(self, images: int, tokens: int, device: torch.device) -> None:
        self.tokens, count = tokens, 2 * images + 5 + tokens
        self.on_host = torch.zeros(count, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.on_device = torch.zeros(count, dtype=torch.int64, device=device)

    def set(self, labels_B: Tensor, indices_B: Tensor, integers: list[int], reals: list[float]) -> None:
        """Store the values of the next call; reals are float64 in the same memory."""
        values = torch.tensor(reals, dtype=torch.float64).view(torch.int64)
        torch.cat((labels_B.cpu(), indices_B.cpu(), torch.tensor(integers), values), out=self.on_host)

    def to(self, buffers: Buffers) -> Tensor:
        """Copy the values to the buffers, reset their counters, derive the random numbers; return the labels."""
        self.on_device.copy_(self.on_host, non_blocking=True)
        images = buffers.images
        labels_B, indices_B, integers, reals = self.on_device.split([images, images, 3, 2 + self.tokens])
        seed, top_k, offset = integers.unbind()
        temperature, top_p, scale_T = reals.view(torch.float64).split([1, 1, self.tokens])
        targets = [buffers.top_k, buffers.offset, buffers.temperature, buffers.top_p, buffers.scale_T]
        for target, value in zip(targets, (top_k, offset, temperature, top_p, scale_T), strict=True):
            target.copy_(value)
        buffers.set_step(0)
        buffers.diverged.zero_()
        steps = torch.arange(self.tokens, device=seed.device)
        buffers.uniform_BT.copy_(hash_uniform("sample", seed, indices_B[:, None], steps))
        return labels_B
