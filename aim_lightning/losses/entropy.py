"""Entropy of the choice of codes (as in MAGVIT-v2, arXiv 2310.05737, equation 4, and the published tokenizer code)."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

ROWS_AT_A_TIME = 16384  # bounds the scores held at once to 16k x V values


def entropy_loss(latent_BCHW: Tensor, codebook_VC: Tensor, temperature: float) -> Tensor:
    """Mean entropy of each position's choice minus the entropy of the mean choice, nats; scalar.

    Low when every position is sure of its code and all codes are used alike.

    Args:
        latent_BCHW: unit vectors.
        codebook_VC: unit vectors.
        temperature: of the softmax over negative squared distances.
    """
    rows = latent_BCHW.movedim(1, -1).flatten(0, -2)
    parts = [
        checkpoint(_choices, part, codebook_VC, temperature, use_reentrant=False) for part in rows.split(ROWS_AT_A_TIME)
    ]
    mean_V = torch.stack([probabilities for probabilities, _ in parts]).sum(0) / len(rows)
    each = torch.stack([entropy for _, entropy in parts]).sum() / len(rows)
    return each + (mean_V * (mean_V + 1e-5).log()).sum()


def _choices(rows: Tensor, codebook_VC: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sums over rows: probabilities (V,), and their entropies."""
    with torch.autocast(rows.device.type, enabled=False):
        scores = 2 * rows.float() @ codebook_VC.float().T  # -|a - b|^2 = 2 ab - 2 for unit vectors
        logs = F.log_softmax(scores / temperature, dim=-1)
        probabilities = logs.exp()
        return probabilities.sum(0), -(probabilities * logs).sum()
