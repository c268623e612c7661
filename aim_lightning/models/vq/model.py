"""The VQ tokenizer: images to codes and back (reference: FoundationVision/LlamaGen, tokenizer_image).

Its quantiser chooses the nearest code on the unit sphere (ViT-VQGAN's l2 normalisation).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from aim_lightning.models.vq.coder import Decoder, Encoder
from aim_lightning.models.vq.vq_config import VQConfig

USAGE_RECORD = "quantize.codebook_used"
# Rows of the latent compared with the codebook at a time: bounds the score matrix to 16k x V values.
ROWS_AT_A_TIME = 16384


@dataclass
class Quantized:
    """The result of a quantisation.

    quantized_BCHW: unit codes, with the gradient of the straight-through estimator; latent_BCHW: the unit vectors
    before; codes_BL: int64 in raster order; codebook_loss and commitment_loss: unweighted means of squared distances.
    """

    quantized_BCHW: Tensor
    latent_BCHW: Tensor
    codes_BL: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor


class VectorQuantizer(nn.Module):
    """Replace each latent vector by the code of smallest angle, always in float32."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)
        bound = 1 / config.codebook_size
        nn.init.uniform_(self.embedding.weight, -bound, bound)
        if self.embedding.weight.device.type != "meta":
            self.embedding.weight.data = F.normalize(self.embedding.weight.data, dim=-1)
        self.register_buffer("codebook_used", torch.zeros(config.usage_window))

    @torch.no_grad()
    def codes(self, latent_BCHW: Tensor) -> Tensor:
        """Return the nearest codes, (B, L) int64."""
        # bfloat16 has 8 bits of mantissa: nearly equal scores would tie, and codes would depend on the precision.
        with torch.autocast(latent_BCHW.device.type, enabled=False):
            rows = F.normalize(latent_BCHW.float().flatten(2).transpose(1, 2), dim=-1)
            codebook_VC, flat = self.codebook_VC, rows.flatten(0, 1)
            # On the unit sphere the largest scalar product is the smallest distance.
            best = [(part @ codebook_VC.T).argmax(-1) for part in flat.split(ROWS_AT_A_TIME)]
            return torch.cat(best).view(rows.shape[:2])

    def lookup(self, codes_BL: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the unit vectors of codes, (B, C, h, w)."""
        vectors_BLC = F.normalize(self.embedding(codes_BL).float(), dim=-1)
        return vectors_BLC.transpose(1, 2).unflatten(2, grid)

    def forward(self, latent_BCHW: Tensor) -> Quantized:
        with torch.autocast(latent_BCHW.device.type, enabled=False):
            latent = F.normalize(latent_BCHW.float(), dim=1)
            codes_BL = self.codes(latent_BCHW.detach())
            chosen = self.lookup(codes_BL, latent.shape[-2:])
            # Each loss moves one side only: the codebook towards the latent, the encoder towards the codebook.
            codebook_loss = F.mse_loss(chosen, latent.detach())
            commitment_loss = F.mse_loss(latent, chosen.detach())
            # Straight-through estimator: the value of the code, the gradient of the latent.
            quantized = latent + (chosen - latent).detach()
        return Quantized(quantized, latent, codes_BL, codebook_loss, commitment_loss)

    @property
    def codebook_VC(self) -> Tensor:
        """Return the codes as unit vectors, float32."""
        return F.normalize(self.embedding.weight.float(), dim=-1)

    @torch.no_grad()
    def record_usage(self, codes_BL: Tensor) -> None:
        """Append a training batch's codes, gathered from all ranks, to the record of the latest ones."""
        window = self.codebook_used.numel()
        recent = codes_BL.flatten()[-window:].to(self.codebook_used.dtype)
        self.codebook_used.copy_(torch.cat((self.codebook_used[recent.numel() :], recent)))

    def recent_counts(self) -> Tensor:
        """Count how often each code occurs in the record, float32 (V,)."""
        recent = self.codebook_used.long()
        return torch.zeros_like(self.embedding.weight[:, 0]).index_add_(0, recent, torch.ones_like(self.codebook_used))

    def start_from(self, latent_BCHW: Tensor, generator: torch.Generator) -> None:
        """Set the whole codebook to random latents of a batch."""
        self.replace(torch.arange(self.embedding.num_embeddings, device=latent_BCHW.device), latent_BCHW, generator)

    @torch.no_grad()
    def replace(self, codes: Tensor, latent_BCHW: Tensor, generator: torch.Generator) -> None:
        """Set the listed codes (n,) to random latents of a batch, with repetition where there are too few."""
        rows = F.normalize(latent_BCHW.float().movedim(1, -1).flatten(0, -2), dim=-1)
        # The permutation is computed on the CPU, so that every rank and device gets the same one.
        order = torch.randperm(len(rows), generator=generator).repeat(-(-len(codes) // len(rows)))[: len(codes)]
        self.embedding.weight[codes] = rows[order.to(rows.device)]


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
            # The shape separates tensors with equal bytes.
            digest.update(str(list(value.shape)).encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


class VQModel(nn.Module):
    """Encoder, quantiser and decoder with the published parameter names.

    The tokenizer protocol, which any other tokenizer can meet: `encode`, `decode`, `grid` (rows and columns of codes
    per image), `codebook_size` (number of codes, V), `weights_hash`.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = config.grid
        self.image_size = config.image_size
        self.codebook_size = config.codebook_size
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)

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
        config, (rows, columns) = self.config, self.grid
        return 3 * _forward_flops(config) + 2 * rows * columns * config.codebook_size * config.codebook_dim

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


@lru_cache
@torch.no_grad()
def _forward_flops(config: VQConfig) -> int:
    """Count the operations of convolutions and attention for one image, on the meta device without arithmetic."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton

    # Attention is counted as two products, which a fused kernel would hide.
    with torch.device("meta"), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model = VQModel(config)
        model.decoder(model.post_quant_conv(model.latent(torch.empty(1, 3, config.image_size, config.image_size))))
    return counter.get_total_flops()
