"""The network of FD-DINOv2."""

from typing import Any

import torch
from torch import Tensor, nn

from aim_lightning.metrics.features.network import FeatureNetwork, read_weights
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.ranges import Range, check_arguments

PATCH, GRID = 14, 37  # pixels per patch; patches per side of the published positions (518 pixels)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
VIT_LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}


class DINOv2Features(FeatureNetwork):
    """The class token of DINOv2 ViT-L/14 after the last norm (arXiv 2304.07193), 1,024 features.

    Images are prepared as in dgm-eval (arXiv 2306.04675): resized to 224 pixels with Pillow's bicubic filter, rounded
    to integers and normalized by ImageNet's mean and deviation. The network is timm's, from the extra `dinov2`.

    Args:
        weights: file of Meta's state_dict; nothing is downloaded.
        embed_dim: features.
        depth: number of blocks.
        num_heads: attention heads per block.

    Raises:
        UserError: a size below 1, or features that are no multiple of the heads.
    """

    # Of dinov2_vitl14_pretrain.pth, as mirrors on the Hugging Face hub state it. Meta publishes none.
    SHA256 = "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"

    name = "dinov2_vit14"
    input_size = 224
    hint = "run `aim-lightning download dinov2`, or set features.init_args.weights"

    def __init__(
        self,
        weights: str = "weights/dinov2_vitl14_pretrain.pth",
        embed_dim: int = VIT_LARGE["embed_dim"],
        depth: int = VIT_LARGE["depth"],
        num_heads: int = VIT_LARGE["num_heads"],
    ) -> None:
        super().__init__()
        self.weights, self.num_features = weights, embed_dim
        self.size: dict[str, Any] = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
        check_arguments("DINOv2Features.", type(self).__init__, self.size, Range(low=1))
        if embed_dim % num_heads:
            raise UserError(f"DINOv2Features.embed_dim is {embed_dim}; it must be a multiple of num_heads, {num_heads}")
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)
        self.recipe = {
            # The file's hash does not contain the number of heads.
            "size": f"{embed_dim} features, {depth} blocks, {num_heads} heads",
            "resizing": "bicubic as Pillow",
            "rounding": "to integers after each axis",
            "scaling": f"(x / 255 - {list(MEAN)}) / {list(STD)}",
            "features": "class token after the last norm",
        }

    @property
    def metric_name(self) -> str:
        """Return ``fd_dinov2``, or for other weights or sizes ``fd_dinov2_`` and the start of the file's hash.

        Raises:
            UserError: the weights file is missing.
        """
        is_published = (self.weights_hash, self.size) == (self.SHA256, VIT_LARGE)
        return "fd_dinov2" if is_published else f"fd_dinov2_{self.weights_hash[:8]}"

    def _build(self) -> nn.Module:
        path = self.weights_path()
        try:
            from timm.models.vision_transformer import checkpoint_filter_fn, vit_large_patch14_dinov2
        except ImportError:
            raise UserError("DINOv2Features needs the package timm; run pip install 'aim-lightning[dinov2]'") from None
        # Without random weights, which take seconds for 300 million parameters.
        with torch.device("meta"):
            network = vit_large_patch14_dinov2(num_classes=0, img_size=self.input_size, **self.size)
        try:
            published = read_weights(path)
            published["pos_embed"] = resized_positions(published["pos_embed"], self.input_size // PATCH)
            network.load_state_dict(checkpoint_filter_fn(published, network), assign=True)
        except (RuntimeError, TypeError, KeyError, AttributeError):
            raise UserError(f"{path} holds other weights than this DINOv2 without registers; {self.hint}") from None
        return network

    def _features(self, images: Tensor) -> Tensor:
        return self.network((resized_as_pillow(images, self.input_size) / 255 - self.mean) / self.std)


def resized_as_pillow(images: Tensor, side: int) -> Tensor:
    """Resize uint8 (B, 3, H, W) as Pillow's bicubic filter does, to float32 integers (B, 3, side, side)."""
    # Pillow resizes the width first, then the height, and stores integers of 0..255 each time; halves are rounded up.
    for size in ((images.shape[2], side), (side, side)):
        resized = nn.functional.interpolate(images.float(), size, mode="bicubic", antialias=True, align_corners=False)
        images = (resized + 0.5).floor().clamp(0, 255)
    return images


def resized_positions(positions: Tensor, grid: int) -> Tensor:
    """Resize position embeddings as the published code does, which differs from timm's antialiased resizing.

    Args:
        positions: (1, 1 + GRID * GRID, F), the class token first.
        grid: patches per side.

    Returns:
        (1, 1 + grid * grid, F).
    """
    patches = positions[:, 1:].unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
    # The offset of 0.1 is part of the published features: it changes the scale, not only the rounding of the size.
    scale = (grid + 0.1) / GRID
    patches = nn.functional.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat((positions[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2)), 1)
