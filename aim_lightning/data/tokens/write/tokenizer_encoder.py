"""Images to codes in batches of one shape, at a stated precision."""

from typing import Any

import torch
from torch import Tensor

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.pixels import to_unit_range
from aim_lightning.utils.precision import exact_products

PRECISIONS = ("float32", "tf32", "bf16")
# Where images and weights lie channels-last because it is faster (benchmarks/tokenizing.py measures both formats).
CHANNELS_LAST = {("cpu", "float32")}


class Encoder:
    """The tokenizer's `encode` as `tokenize` runs it and benchmarks/tokenizing.py measures it.

    A result may depend on the batch size in the last digit, hence in a code here and there: every batch has the same
    shape, and nothing is tuned by timing, so that an image's codes follow from its batch alone.

    Args:
        tokenizer: anything with `encode`; moved to `device`.
        device: where it runs.
        precision: ``float32`` (TF32 off), ``tf32`` (NVIDIA GPUs) or ``bf16`` (autocast; the quantiser stays float32).
        compile: fuse with torch.compile, without its timed choices.
        channels_last: memory format of images and weights; None = as CHANNELS_LAST says.

    Raises:
        UserError: no such precision, or TF32 without a GPU.
    """

    def __init__(
        self,
        tokenizer: Any,
        device: torch.device,
        precision: str = "float32",
        compile: bool = False,
        channels_last: bool | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise UserError(f"precision is {precision!r}; use one of {', '.join(PRECISIONS)}")
        if precision == "tf32" and device.type != "cuda":
            raise UserError("precision tf32 needs an NVIDIA GPU; use float32 here")
        self.precision, self.device = precision, device
        channels_last = (device.type, precision) in CHANNELS_LAST if channels_last is None else channels_last
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        tokenizer.to(device=device, memory_format=self.memory_format)
        self._encode = _compiled(tokenizer.encode) if compile else tokenizer.encode

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images to codes_BL, int32 on the device."""
        with exact_products(self.precision == "tf32"), self._autocast():
            x = to_unit_range(images_BCHW.to(self.device, non_blocking=True))
            return self._encode(x.contiguous(memory_format=self.memory_format)).to(torch.int32)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def _compiled(function: Any) -> Any:
    from torch._inductor import config

    if not hasattr(config, "deterministic"):
        raise UserError(f"--compile needs a newer torch than {torch.__version__} (inductor's deterministic mode)")
    config.deterministic = True  # kernels chosen by rule, not by timing them in each process
    return torch.compile(function, dynamic=False)
