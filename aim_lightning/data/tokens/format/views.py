"""The versions of each image that are stored, so that training can pick another one every epoch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor
from torchvision.transforms.v2 import functional as F

from aim_lightning.data.images.transforms import ImageTransform
from aim_lightning.utils.errors import UserError

KINDS = ("center", "center_flip", "ten_crop")
DEFAULT_RANGE = (1.1,)


@dataclass(frozen=True)
class Views:
    """Which versions, in stored order (reference: LlamaGen, extract_codes_c2i.py).

    Args:
        kind: ``center``: the image as the experiment cuts it; ``center_flip``: and its mirror image;
            ``ten_crop``: for each crop range the four corners and the centre, then the same of the mirror image.
        crop_range: of ten_crop: the shorter side, as a multiple of the image size, that the crops are cut from
            (resized as ADM does); None = 1.1. Two ranges give 20 views.

    Raises:
        UserError: unknown kind, a range outside 1 to 2, or one for another kind.
    """

    kind: str = "center"
    crop_range: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"views is {self.kind!r}; use one of {', '.join(KINDS)}")
        if self.kind != "ten_crop":
            if self.crop_range is not None:
                raise UserError(f"crop_range is of ten_crop alone, but views is {self.kind}; leave one of them away")
            return
        if self.crop_range is None:
            object.__setattr__(self, "crop_range", DEFAULT_RANGE)
        wrong = [value for value in self.crop_range if not 1 < value <= 2]
        if wrong or not self.crop_range or len(set(self.crop_range)) < len(self.crop_range):
            raise UserError(f"crop_range is {list(self.crop_range)}; give different numbers above 1, 2 at most")

    @property
    def count(self) -> int:
        """Views an image."""
        return {"center": 1, "center_flip": 2}.get(self.kind) or 10 * len(self.crop_range)

    def transforms(self, center: ImageTransform) -> list[ImageTransform]:
        """What an image is resized to before `cut`: one transform a base image; raises UserError as `sizes`."""
        if self.kind != "ten_crop":
            return [center]
        sizes = self.sizes(center.image_size)
        return [replace(center, image_size=size, resize=None, crop="adm_center") for size in sizes]

    def sizes(self, image_size: int) -> list[int]:
        """Sides that the crops of ten_crop are cut from, pixels.

        Raises:
            UserError: one that leaves no room to crop, or two ranges with the same side: views would be alike.
        """
        sizes = {value: int(image_size * value) for value in self.crop_range}
        for value, size in sizes.items():
            alike = [other for other in sizes if other != value and sizes[other] == size]
            if size <= image_size or alike:
                why = f"as does {alike[0]}" if alike else "which leaves no room"
                raise UserError(
                    f"crop_range {value} cuts images of {image_size} pixels from {size}, {why}: views would be "
                    "alike; give larger numbers, farther apart"
                )
        return list(sizes.values())

    def cut(self, bases: list[Tensor], image_size: int) -> Iterator[Tensor]:
        """Base images (B, 3, S, S), one tensor a transform, to `count` views (B, 3, H, W) of image_size."""
        for base_BCHW in bases:
            if self.kind == "ten_crop":
                yield from F.ten_crop(base_BCHW, [image_size, image_size])
                continue
            yield base_BCHW
            if self.kind == "center_flip":
                yield base_BCHW.flip(-1)
