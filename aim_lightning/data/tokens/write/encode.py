"""Decode planned batches of images in loader workers, and encode them to codes at a fixed precision."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from aim_lightning.data.images.dataset import ImageDataset, transform_row
from aim_lightning.data.images.decode import UnreadableImage
from aim_lightning.data.tokens.format.tokenize_options import TokenizeOptions
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.pixels import to_unit_range
from aim_lightning.utils.precision import exact_products
from aim_lightning.utils.ranges import check_arguments

# (device, precision) where channels-last is the faster memory format; benchmarks/tokenizing.py measures both.
CHANNELS_LAST = {("cpu", "float32")}


@dataclass
class ImageBatch:
    """Images of a planned batch; slots of unreadable images, and slots after the last row, are black.

    bases: uint8 (batch_size, 3, S, S), one tensor per transform of the views. skipped: reasons by row. transparent:
    number of images with transparent pixels.
    """

    rows: range
    bases: list[Tensor]
    skipped: dict[int, str]
    transparent: int = 0

    def pin_memory(self) -> "ImageBatch":
        """Pin the images, as the DataLoader requires: pinned memory is copied to a GPU asynchronously."""
        self.bases = [base.pin_memory() for base in self.bases]
        return self


class ImageBatches(Dataset):
    """Map-style dataset whose items are the planned batches."""

    def __init__(self, images: ImageDataset, options: TokenizeOptions, batches: list[range]) -> None:
        self.source = images.source
        self.batches = batches
        self.options = options
        self.transforms = options.views.transforms(images.transform)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> ImageBatch:
        rows, size = self.batches[number], self.options.batch_size
        # Always the full batch size: the codes of an image may depend on the shape of its batch.
        bases = [torch.zeros(size, 3, t.image_size, t.image_size, dtype=torch.uint8) for t in self.transforms]
        skipped, transparent = {}, self.source.transparent
        for slot, row in enumerate(rows):
            try:
                images = transform_row(self.source, row, self.transforms)
            except UnreadableImage as error:
                if self.options.on_error == "error":
                    raise UserError(f"{error}, or leave such images out with --on_error skip") from None
                skipped[row] = str(error)
                continue
            for base, image in zip(bases, images, strict=True):
                base[slot] = image
        return ImageBatch(rows, bases, skipped, self.source.transparent - transparent)


class Encoder:
    """The tokenizer's `encode` as `tokenize` runs it and benchmarks/tokenizing.py measures it.

    The last digit of a result, and hence a few codes, may depend on the batch size. Every batch has the same shape, and
    nothing is tuned by timing, so an image's codes depend on its batch only.

    Args:
        tokenizer: object with `encode`; it is moved to `device`.
        device: device of the encoder.
        precision: ``float32`` (TF32 off), ``tf32`` (NVIDIA GPUs) or ``bf16`` (autocast; the quantiser stays float32).
        compile: True to use torch.compile without its timed choices.
        channels_last: memory format of images and weights; None = the entry in CHANNELS_LAST.

    Raises:
        UserError: an unknown precision, or TF32 without a GPU.
    """

    def __init__(
        self,
        tokenizer: Any,
        device: torch.device,
        precision: Literal["float32", "tf32", "bf16"] = "float32",
        compile: bool = False,
        channels_last: bool | None = None,
    ) -> None:
        check_arguments("", Encoder.__init__, {"precision": precision})
        if precision == "tf32" and device.type != "cuda":
            raise UserError("precision tf32 needs an NVIDIA GPU; use float32 here")
        self.precision = precision
        self.device = device
        channels_last = (device.type, precision) in CHANNELS_LAST if channels_last is None else channels_last
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        tokenizer.to(device=device, memory_format=self.memory_format)
        self._encode = _compiled(tokenizer.encode) if compile else tokenizer.encode

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Encode uint8 images to codes_BL, int32 on the device."""
        # The tokenizer's quantiser leaves autocast: its argmin over distances needs float32.
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with exact_products(self.precision == "tf32"), autocast:
            x = to_unit_range(images_BCHW.to(self.device, non_blocking=True))
            return self._encode(x.contiguous(memory_format=self.memory_format)).to(torch.int32)


def _compiled(function: Any) -> Any:
    from torch._inductor import config  # private API: no public switch for deterministic kernel selection

    if not hasattr(config, "deterministic"):
        raise UserError(f"--compile needs a newer torch than {torch.__version__} (inductor's deterministic mode)")
    config.deterministic = True  # kernels are selected by rule instead of timing, which may differ between processes
    return torch.compile(function, dynamic=False)
