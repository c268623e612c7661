"""Codebook usage, and the revival of unused codes."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from aim_lightning.models.vq.model import VectorQuantizer
from aim_lightning.utils.random import hash_seed
from aim_lightning.utils.ranges import check_arguments


@dataclass(frozen=True)
class RevivalConfig:
    """When codes that were not used recently are set to latents of the current batch.

    Args:
        every_n_steps: optimizer steps between two revivals; 0 = never.
        until_step: no revival after this step, so that the codebook can converge; null = until the end.

    Raises:
        UserError: a number out of range.
    """

    every_n_steps: int = 0
    until_step: int | None = None

    def __post_init__(self) -> None:
        check_arguments("model.revival.", RevivalConfig, vars(self))

    def due(self, step: int) -> bool:
        """Return True if unused codes are to be revived after optimizer step `step`."""
        over = self.until_step is not None and step > self.until_step
        return bool(self.every_n_steps) and step % self.every_n_steps == 0 and not over


class CodeCounts(Metric):
    """Counts of each code over all ranks, int64 (V,)."""

    full_state_update = False

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(codebook_size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, codes: Tensor) -> None:
        """Add codes of any shape."""
        self.counts += torch.bincount(codes.flatten(), minlength=len(self.counts))

    def compute(self) -> Tensor:
        """Return the counts, int64 (V,)."""
        return self.counts


def usage(counts_V: Tensor) -> Tensor:
    """Return the share of the codes that were used, 0 to 1."""
    return (counts_V > 0).float().mean()


def perplexity(counts_V: Tensor) -> Tensor:
    """Return exp(entropy) of the codes: the effective number of codes in use."""
    share = counts_V.float() / counts_V.sum().clamp(min=1)
    return torch.special.entr(share).sum().exp()


def revive(quantizer: VectorQuantizer, latent_BCHW: Tensor, seed: int, step: int) -> int:
    """Set every code that was not used recently to a random latent.

    Args:
        quantizer: its codebook is changed in place.
        latent_BCHW: of all ranks, in the same order on each, so that all ranks select the same.
        seed: of the run; selects the latents together with `step`.
        step: optimizer steps so far.

    Returns:
        The number of revived codes.
    """
    # The record is equal on all ranks, and so is this list, without communication.
    dead = (quantizer.recent_counts() == 0).nonzero().flatten()
    if len(dead):
        quantizer.replace(dead, latent_BCHW, torch.Generator().manual_seed(hash_seed("revival", seed, step)))
    return len(dead)
