"""What stage 1 minimises: distances between images, terms of the codebook, the adversarial game."""

from aim_lightning.losses.tokenizer import LossTerms, TokenizerLoss

__all__ = ["LossTerms", "TokenizerLoss"]
