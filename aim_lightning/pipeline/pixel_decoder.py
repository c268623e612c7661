"""From codes to images: the tokenizer's decoder, on a GPU concurrently with the sampling of the next batch."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from aim_lightning.models import VQModel
from aim_lightning.models.aim.backends import launcher_fault
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.pixels import round_pixels
from aim_lightning.utils.precision import exact_products

# Tensors of the largest size that are held at once: a block's input, its normed and its convolved values, and one
# temporary.
AT_ONCE = 4
# Images that a GPU decodes at a time: enough to keep it busy, and tensors stay below 2^31 values.
DECODED_AT_ONCE = 64


def resolve_pixels(options: SamplingOptions, device: torch.device) -> SamplingOptions:
    """Return the options without `auto` for pixels that are decoded on a device: bfloat16 on a GPU that has it."""
    if options.pixel_precision != "auto":
        return options
    has_type = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return replace(options, pixel_precision="bfloat16" if has_type else "float32")


class Pixels:
    """Images that may still be computed on another CUDA stream.

    Args:
        rounded: uint8 (b, 3, H, W).
        bad: bool on the device: is any pixel NaN.
        done: recorded on that stream after them; None = in order with everything else.
    """

    def __init__(self, rounded: Tensor, bad: Tensor, done: "torch.cuda.Event | None") -> None:
        self._rounded, self._bad, self._done = rounded, bad, done

    def images(self) -> Tensor:
        """Return uint8 (b, 3, H, W) on the device, for the current stream.

        Raises:
            UserError: the tokenizer's decoder gave NaN.
        """
        if self._done is not None:
            current = torch.cuda.current_stream(self._rounded.device)
            # Not for the whole stream, which may decode the next batch already.
            current.wait_event(self._done)
            # The allocator must not reuse this memory before the current stream has read it.
            for tensor in (self._rounded, self._bad):
                tensor.record_stream(current)
        if self._bad:
            hint = "the tokenizer's weights have diverged; take an earlier checkpoint"
            raise UserError(f"pixels are not finite (NaN): {hint}")
        return self._rounded


class PixelDecoder:
    """Decode batches of codes, on a GPU on a separate stream, concurrently with what follows.

    On a GPU, the bfloat16 decoder of a VQ tokenizer is a copy: the tokenizer is shared and keeps its layout and type.
    A copy keeps the weights that it was made with (`weights_version`).

    Args:
        tokenizer: with `decode` and `grid`.
        device: where it is and the codes will be.
        precision: ``float32``, ``tf32`` on NVIDIA GPUs, or ``bfloat16``. On a GPU, bfloat16 of a VQ tokenizer uses the
            kernels of `aim_lightning.models.vq.fused`, others autocast, which keeps the norms in float32.

    Raises:
        UserError: TF32 without an NVIDIA GPU.
    """

    def __init__(self, tokenizer: nn.Module, device: torch.device, precision: str = "float32") -> None:
        if precision == "tf32" and device.type != "cuda":
            raise UserError("sampling.pixel_precision tf32 needs an NVIDIA GPU; use float32 here")
        self.tokenizer, self.device, self.precision = tokenizer, device, precision
        self.decode = self._decoder()
        self._stream: torch.cuda.Stream | None = None
        self._largest: int | None = None

    def _decoder(self) -> Callable[[Tensor], Tensor]:
        """Return the function from codes to images."""
        is_fused = self.device.type == "cuda" and self.precision == "bfloat16"
        if is_fused and _obstacle(self.tokenizer, self.device) is None:
            from aim_lightning.models.vq.fused import FusedDecoder  # needs Triton

            return FusedDecoder(self.tokenizer).decode
        return self.tokenizer.decode

    @property
    def behind(self) -> int:
        """Return the batches that may be sampled before the first one's images are read."""
        return 1 if self.device.type == "cuda" else 0

    @torch.no_grad()
    def start(self, codes_BL: Tensor, count: int) -> Pixels:
        """Start to decode the first `count` images of a block, without waiting for the device."""
        if self.device.type != "cuda":
            return self._decode(codes_BL, count, None)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        # The codes are ready when the current stream is; the decoder's stream reads them after that.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        codes_BL.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            return self._decode(codes_BL, count, self._stream)

    def _decode(self, codes_BL: Tensor, count: int, stream) -> Pixels:
        if self.precision == "bfloat16":
            products = torch.autocast(self.device.type, torch.bfloat16)
        else:
            products = exact_products(self.precision == "tf32")
        with products:
            parts = codes_BL[:count].split(DECODED_AT_ONCE if self.device.type == "cuda" else count)
            images_BCHW = torch.cat([self.decode(part) for part in parts])
        rounded, bad = round_pixels(images_BCHW), images_BCHW.isnan().any()
        return Pixels(rounded, bad, stream and stream.record_event())

    def image_bytes(self) -> int:
        """Return the GPU memory per image while it is decoded, from the largest output of the tokenizer's modules."""
        if self.device.type != "cuda":
            return 0
        if self._largest is None:
            self._largest = largest_output(self.tokenizer, self.device)
        return AT_ONCE * self._largest * (2 if self.precision == "bfloat16" else 4)


def weights_version(tokenizer: nn.Module) -> int:
    """Return a number that changes when a parameter is replaced or written to."""
    # Tensors created in inference mode have no version.
    versions = ((value.data_ptr(), 0 if value.is_inference() else value._version) for value in tokenizer.parameters())
    return hash(tuple(versions))


def _obstacle(tokenizer: nn.Module, device: torch.device) -> str | None:
    """Return why the kernels cannot decode with a tokenizer on a GPU; None when they can."""
    if not isinstance(tokenizer, VQModel):
        return "they are for VQ tokenizers"
    sizes = (*tokenizer.config.widths, tokenizer.config.norm_groups)
    if any(size & (size - 1) for size in sizes):
        return "they need powers of two as widths and norm_groups"
    return launcher_fault(device)


@torch.no_grad()
def largest_output(tokenizer: nn.Module, device: torch.device) -> int:
    """Return the size of the largest tensor that any module of the tokenizer outputs while it decodes one image."""
    sizes: list[int] = []
    record = lambda module, inputs, output: sizes.append(output.numel()) if isinstance(output, Tensor) else None  # noqa: E731
    hooks = [module.register_forward_hook(record) for module in tokenizer.modules()]
    rows, columns = tokenizer.grid
    try:
        codes = torch.zeros(1, rows * columns, dtype=torch.int64, device=device)
        return max([tokenizer.decode(codes).numel(), *sizes])
    finally:
        # The tokenizer is shared, so hooks must not stay.
        for hook in hooks:
            hook.remove()
