"""Images of codes that are still being drawn."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from aim_lightning.utils.pixels import to_uint8

GREY = 128


def preview(tokenizer, show: Callable[[Tensor], None], every: int) -> Callable[[int, Tensor], None]:
    """An `on_step` of `aim_lightning.sampling.generate` that shows images in the making.

    Args:
        tokenizer: decodes.
        show: called with uint8 images (b, 3, H, W) on the device; what is not drawn yet is grey.
        every: codes between two calls; the last code gets one in any case.
    """
    rows, columns = tokenizer.grid

    @torch.no_grad()
    def on_step(step: int, codes_BT: Tensor) -> None:
        drawn = step + 1
        if drawn % every and drawn < rows * columns:
            return
        # Codes to come are decoded as code 0 and covered: only the pixels beside them see which code that is.
        images_BCHW = to_uint8(tokenizer.decode(F.pad(codes_BT, (0, rows * columns - drawn))))
        known = (torch.arange(rows * columns, device=codes_BT.device) < drawn).view(1, 1, rows, columns)
        shown = F.interpolate(known.float(), images_BCHW.shape[-2:]).bool()
        show(torch.where(shown, images_BCHW, torch.full_like(images_BCHW, GREY)))

    return on_step
