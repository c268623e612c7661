"""Sizes and options of the transformer baseline (after LlamaGen, arXiv 2406.06525, table 1)."""

import math
from dataclasses import dataclass

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.ranges import Range, check_arguments

MULTIPLE = 256  # LlamaGen rounds the hidden width of the MLP up to a multiple of it


@dataclass(frozen=True)
class GPTConfig:
    """Set everything that determines the transformer's parameters; shared options are named as in AiMConfig.

    The defaults are the smallest size of LlamaGen (arXiv 2406.06525, table 1), with 111 million parameters.

    Args:
        d_model: width of the residual stream.
        n_layer: number of blocks.
        n_head: attention heads; d_model must be a multiple of 4 * n_head.
        vocab_size: codebook size of the tokenizer, V.
        num_classes: labels run from 0 to num_classes - 1; num_classes is the null class.
        num_tokens: codes per image, L; a square number (256 for 16x16).
        d_intermediate: hidden width of the SwiGLU MLP; 0 = 8/3 d_model, rounded up to a multiple of 256.
        tie_embeddings: use the embedding of codes as head too; LlamaGen has a separate head.
        token_dropout: dropout on the embedded input sequence, 0 to 1.
        mixer_dropout: dropout on the output of the attention, 0 to 1.
        mlp_dropout: dropout on the MLP's output, 0 to 1.

    Raises:
        UserError: a value that no network can have.
    """

    d_model: int = 768
    n_layer: int = 12
    n_head: int = 12
    vocab_size: int = 16384
    num_classes: int = 1000
    num_tokens: int = 256
    d_intermediate: int = 0
    tie_embeddings: bool = False
    token_dropout: float = 0.1
    mixer_dropout: float = 0.1
    mlp_dropout: float = 0.1

    def __post_init__(self) -> None:
        ranges = dict.fromkeys(("token_dropout", "mixer_dropout", "mlp_dropout"), Range(0, 1, below=True))
        check_arguments("GPTConfig.", GPTConfig, vars(self), Range(1), d_intermediate=Range(0), **ranges)
        # Each head rotates pairs of channels, one half by the row and the other by the column.
        unit = 4 * self.n_head
        if self.d_model % unit:
            raise UserError(f"GPTConfig.d_model is {self.d_model}; it must be a multiple of 4 * n_head = {unit}")
        if self.side**2 != self.num_tokens:
            raise UserError(f"GPTConfig.num_tokens is {self.num_tokens}; it must be a square number")

    @property
    def side(self) -> int:
        """Return the rows and columns of the grid of codes."""
        return math.isqrt(self.num_tokens)

    @property
    def mlp_width(self) -> int:
        """Return the hidden width of the MLP."""
        return self.d_intermediate or MULTIPLE * math.ceil(8 * self.d_model // 3 / MULTIPLE)
