"""The VQ tokenizer: images to codes and back (reference: FoundationVision/LlamaGen, tokenizer_image)."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aim_lightning.models.vq.coder import Decoder, Encoder, products
from aim_lightning.models.vq.quantizer import Quantized, VectorQuantizer
from aim_lightning.models.vq.vq_config import VQConfig

USAGE_RECORD = "quantize.codebook_used"


@dataclass
class Reconstruction:
    """The reconstructed images_BCHW, in about [-1, 1], and the quantiser's result."""

    images_BCHW: Tensor
    quantized: Quantized


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the hex sha256 over sorted names, shapes and float32 little-endian bytes, without the usage record."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        if name != USAGE_RECORD:  # changes at every training step without changing any code
            digest.update(name.encode())
            digest.update(str(list(value.shape)).encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


class VQModel(nn.Module):
    """Encoder, quantiser and decoder with the published parameter names.

    The tokenizer protocol, which any other tokenizer can meet: `encode`, `decode`, `grid`, `codebook_size`,
    `weights_hash`.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Return the codes per image as (rows, columns)."""
        return self.config.grid

    @property
    def image_size(self) -> int:
        """Return the height and width of the images, pixels."""
        return self.config.image_size

    @property
    def codebook_size(self) -> int:
        """Return the number of codes, V."""
        return self.config.codebook_size

    @property
    def weights_hash(self) -> str:
        """Return the hash that identifies these weights (see `hash_weights`)."""
        return hash_weights(self.state_dict())

    @property
    def last_layer(self) -> Tensor:
        """Return the weight of the decoder's last convolution, used by the adaptive adversarial weight."""
        return self.decoder.conv_out.weight

    def flops_per_image(self) -> int:
        """Return the floating-point operations of one image, forward and backward.

        6 per product of convolutions and attention; 2 in the search for the nearest codes, which has no backward pass.
        """
        side = self.grid[0]
        projections = products(self.quant_conv, side) + products(self.post_quant_conv, side)
        trained = self.encoder.products(self.image_size) + projections + self.decoder.products(side)
        return 6 * trained + 2 * side**2 * self.config.codebook_size * self.config.codebook_dim

    def checkpoint_gradients(self, on: bool = True) -> None:
        """Trade time for memory in training (see `Coder`); values and gradients stay the same."""
        self.encoder.gradient_checkpointing = self.decoder.gradient_checkpointing = on

    def latent(self, images_BCHW: Tensor) -> Tensor:
        """Return the latent before quantisation, (B, codebook_dim, h, w)."""
        return self.quant_conv(self.encoder(images_BCHW))

    @torch.no_grad()
    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Encode images in [-1, 1] to codes_BL, int64 in raster order."""
        return self.quantize.codes(self.latent(images_BCHW))

    @torch.no_grad()
    def decode(self, codes_BL: Tensor) -> Tensor:
        """Decode codes_BL in raster order to images, about [-1, 1] (not clamped)."""
        return self._to_pixels(self.quantize.lookup(codes_BL, self.grid))

    def forward(self, images_BCHW: Tensor) -> Reconstruction:
        """Reconstruct images, with the gradient passed straight through the quantiser."""
        quantized = self.quantize(self.latent(images_BCHW))
        return Reconstruction(self._to_pixels(quantized.quantized_BCHW), quantized)

    def _to_pixels(self, quantized_BCHW: Tensor) -> Tensor:
        # The quantiser works in float32; the decoder takes the type of its own weights.
        return self.decoder(self.post_quant_conv(quantized_BCHW.to(self.post_quant_conv.weight.dtype)))
