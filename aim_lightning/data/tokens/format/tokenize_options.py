"""Options of tokenizing: the stored views of each image, and how images become shards."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor
from torchvision.transforms.v2 import functional as F

from aim_lightning.data.images.transforms import ImageTransform
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.ranges import Range, check_arguments

KINDS = ("center", "center_flip", "ten_crop")
DEFAULT_RANGE = (1.1,)


@dataclass(frozen=True)
class Views:
    """Versions stored per image, in stored order; training uses another one in every epoch.

    Reference: LlamaGen, extract_codes_c2i.py.

    Args:
        kind: ``center`` stores the crop of the experiment, ``center_flip`` also its mirror image. ``ten_crop`` stores
            the four corners and the centre per crop range, then the same of the mirror image.
        crop_range: for ten_crop, the shorter side from which the crops are cut, as a multiple of the image size
            (resized as in ADM); None = 1.1. Two ranges give 20 views.

    Raises:
        UserError: an unknown kind, a range outside 1 to 2, or a range with another kind.
    """

    kind: str = "center"
    crop_range: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"views is {self.kind!r}; use one of {', '.join(KINDS)}")
        if self.kind != "ten_crop":
            if self.crop_range is not None:
                raise UserError(f"crop_range requires views ten_crop, but views is {self.kind}; remove one of them")
            return
        if self.crop_range is None:
            object.__setattr__(self, "crop_range", DEFAULT_RANGE)
        wrong = [value for value in self.crop_range if not 1 < value <= 2]
        if wrong or not self.crop_range or len(set(self.crop_range)) < len(self.crop_range):
            raise UserError(f"crop_range is {list(self.crop_range)}; set different numbers above 1, 2 at most")

    @property
    def count(self) -> int:
        """Return the number of views per image."""
        return {"center": 1, "center_flip": 2}.get(self.kind) or 10 * len(self.crop_range)

    def transforms(self, center: ImageTransform) -> list[ImageTransform]:
        """Return the transforms that give the base images of `cut`.

        Args:
            center: the transform of the experiment.

        Raises:
            UserError: as in `sizes`.
        """
        if self.kind != "ten_crop":
            return [center]
        sizes = self.sizes(center.image_size)
        return [replace(center, image_size=size, resize=None, crop="adm_center") for size in sizes]

    def sizes(self, image_size: int) -> list[int]:
        """Return the sides from which ten_crop cuts its crops, pixels.

        Args:
            image_size: side of the crops, pixels.

        Raises:
            UserError: a size without room to crop, or two ranges with the same size: views would be identical.
        """
        sizes = {value: int(image_size * value) for value in self.crop_range}
        for value, size in sizes.items():
            equal = [other for other in sizes if other != value and sizes[other] == size]
            if size <= image_size or equal:
                reason = f"as does {equal[0]}" if equal else "which leaves no room"
                fact = f"crop_range {value} cuts images of {image_size} pixels from {size}, {reason}"
                raise UserError(f"{fact}: views would be identical; set larger numbers, farther apart")
        return list(sizes.values())

    def cut(self, bases: list[Tensor], image_size: int) -> Iterator[Tensor]:
        """Yield `count` views (B, 3, image_size, image_size).

        Args:
            bases: base images (B, 3, S, S), one tensor per transform.
            image_size: side of the views, pixels.
        """
        for base_BCHW in bases:
            if self.kind == "ten_crop":
                yield from F.ten_crop(base_BCHW, [image_size, image_size])
                continue
            yield base_BCHW
            if self.kind == "center_flip":
                yield base_BCHW.flip(-1)


@dataclass(frozen=True)
class TokenizeOptions:
    """Settings that determine how images become shards.

    Args:
        views: stored versions per image.
        rows_per_shard: images per shard.
        batch_size: images encoded together. It is part of the plan because a code may depend on it.
        precision: ``float32``, ``tf32`` or ``bf16``.
        compile: True to compile the encoder.
        on_error: ``error`` stops at an unreadable image, ``skip`` leaves it out. Not part of the plan: a job that
            stopped at an image may be continued with skip.

    Raises:
        UserError: a value is out of range.
    """

    views: Views = field(default_factory=Views)
    rows_per_shard: int = 10000
    batch_size: int = 64
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    compile: bool = False
    on_error: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        check_arguments("", TokenizeOptions, vars(self), Range(1))

    def encoding(self) -> dict:
        """Return the settings on which the codes depend."""
        ranges = {"crop_range": list(self.views.crop_range)} if self.views.kind == "ten_crop" else {}
        settings = {name: getattr(self, name) for name in ("batch_size", "precision", "compile")}
        return {"views": self.views.kind, **ranges, **settings}
