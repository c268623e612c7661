"""Losses of stage 1: reconstruction, codebook, entropy and adversarial terms."""

from aim_lightning.losses.tokenizer import LossTerms, TokenizerLoss

__all__ = ["LossTerms", "TokenizerLoss"]
