"""What stage 1 minimises: distances between images, terms of the codebook, the adversarial game."""

from aim_lightning.losses.tokenizer import Terms, TokenizerLoss

__all__ = ["Terms", "TokenizerLoss"]
