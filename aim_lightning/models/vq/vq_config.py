"""Sizes of the VQ tokenizer (LlamaGen's VQ-16 and VQ-8 by default widths)."""

from dataclasses import dataclass

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.ranges import Range, check_arguments


@dataclass(frozen=True)
class VQConfig:
    """Set everything that determines the tokenizer's parameters.

    Args:
        image_size: height and width of the images, pixels.
        codebook_size: number of codes, V.
        codebook_dim: dimensions of a code.
        base_channels: width of the first level; every level's width is a multiple of it.
        channel_multipliers: one per level, high resolution first; each level but the last halves the image.
        num_res_blocks: residual blocks per level in the encoder; the decoder has one more.
        z_channels: width between the convolutional part and the 1x1 projections to the codes.
        norm_groups: groups of every GroupNorm; must divide every level's width.
        dropout: inside residual blocks, 0 to 1.
        usage_window: number of the latest training codes (of all ranks) kept in `quantize.codebook_used`.

    Raises:
        UserError: a value that no network can have.
    """

    image_size: int = 256
    codebook_size: int = 16384
    codebook_dim: int = 8
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 256
    norm_groups: int = 32
    dropout: float = 0.0
    usage_window: int = 65536

    def __post_init__(self) -> None:
        check_arguments("VQConfig.", VQConfig, vars(self), Range(1), dropout=Range(0, 1, below=True))
        # Files give lists; a frozen configuration must be hashable.
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        if self.image_size % self.downsampling:
            factor = f"{self.downsampling}, the downsampling of {len(self.widths)} levels"
            raise UserError(f"VQConfig.image_size is {self.image_size}; it must be a multiple of {factor}")
        for width in self.widths:
            if width % self.norm_groups:
                raise UserError(f"VQConfig.norm_groups is {self.norm_groups}; it must divide the level width {width}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the channels of each level, high resolution first."""
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multipliers)

    @property
    def downsampling(self) -> int:
        """Return the pixels per code along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Return the codes per image as (rows, columns)."""
        side = self.image_size // self.downsampling
        return side, side
