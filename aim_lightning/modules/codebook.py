"""Codebook health: how many codes are in use, and a second life for those that are not."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from aim_lightning.models.vq.quantizer import VectorQuantizer
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.random import hash_seed


@dataclass(frozen=True)
class RevivalConfig:
    """When codes that stand nowhere in the record of recent ones are set to latents of the present batch.

    Args:
        every_n_steps: optimizer steps between two looks; 0 = never.
        until_step: no look after this step, so that the codebook can settle; null = to the end.

    Raises:
        UserError: a negative number.
    """

    every_n_steps: int = 0
    until_step: int | None = None

    def __post_init__(self) -> None:
        for name in ("every_n_steps", "until_step"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"model.revival.{name} is {getattr(self, name)}; it must be 0 or more")

    def due(self, step: int) -> bool:
        """Whether to look after so many optimizer steps."""
        over = self.until_step is not None and step > self.until_step
        return bool(self.every_n_steps) and step % self.every_n_steps == 0 and not over


class CodeCounts(Metric):
    """How often each code was chosen, int64 (V,), over all processes."""

    full_state_update = False

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(codebook_size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, codes: Tensor) -> None:
        """Add codes of any shape."""
        self.counts += torch.bincount(codes.flatten(), minlength=len(self.counts))

    def compute(self) -> Tensor:
        """The counts."""
        return self.counts


def usage(counts_V: Tensor) -> Tensor:
    """Share of the codes that were used at all, 0 to 1."""
    return (counts_V > 0).float().mean()


def perplexity(counts_V: Tensor) -> Tensor:
    """exp of the entropy of the choice: the number of codes that, used alike, would be as hard to guess."""
    share = counts_V.float() / counts_V.sum().clamp(min=1)
    return torch.special.entr(share).sum().exp()


def revive(quantizer: VectorQuantizer, latent_BCHW: Tensor, seed: int, step: int) -> int:
    """Set every code without a place in the record to a latent drawn by (seed, step); returns how many.

    Args:
        quantizer: its codebook is changed in place.
        latent_BCHW: of all processes, in the same order on each: then all draw the same.
        seed: of the run.
        step: optimizer steps so far.
    """
    dead = (quantizer.recent_counts() == 0).nonzero().flatten()
    if len(dead):
        quantizer.replace(dead, latent_BCHW, torch.Generator().manual_seed(hash_seed("revival", seed, step)))
    return len(dead)
