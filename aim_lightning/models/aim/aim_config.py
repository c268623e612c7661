"""Sizes and options of the AiM network (arXiv 2408.12245, table 1)."""

from dataclasses import dataclass
from typing import Any, Literal

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.ranges import Range, check_arguments

# The published sizes (arXiv 2408.12245, table 1); everything else is the default.
PRESETS = {
    "AiM-B": {"d_model": 768, "n_layer": 24, "adaln": "layer"},
    "AiM-L": {"d_model": 1024, "n_layer": 48, "adaln": "group"},
    "AiM-XL": {"d_model": 1536, "n_layer": 48, "adaln": "group"},
    "AiM-1B": {"d_model": 2048, "n_layer": 48, "adaln": "group"},
}


@dataclass(frozen=True)
class AiMConfig:
    """Set everything that determines AiM's parameters; names follow the published configuration.

    Args:
        d_model: width of the residual stream.
        n_layer: number of Mamba-2 blocks.
        vocab_size: codebook size of the tokenizer, V.
        num_classes: labels run from 0 to num_classes - 1; num_classes is the null class.
        num_tokens: codes per image, L (256 for 16x16).
        adaln: class modulation. ``layer`` = plain adaLN, one projection per layer; ``group`` = adaLN-group,
            num_groups projections shared by interleaved layers plus a table per layer; ``none`` = no modulation.
        num_groups: adaLN groups; 1 is adaLN-single. Used by ``group`` only.
        position_embedding: add a learnt absolute position embedding to every code.
        d_intermediate: hidden width of an optional gated MLP after each mixer; 0 = none, as published.
        token_dropout: dropout on the embedded input sequence, 0 to 1.
        mixer_dropout: dropout on the mixer's output, 0 to 1.
        mlp_dropout: dropout on the MLP's output, 0 to 1.
        d_state: state width N of Mamba-2.
        d_conv: taps of the causal depthwise convolution.
        expand: d_inner = expand * d_model.
        headdim: channels per head, P; d_inner must be a multiple of it.
        chunk_size: longest block that the scan treats as one quadratic piece, in codes.

    Raises:
        UserError: a value that no network can have.
    """

    d_model: int = 768
    n_layer: int = 24
    vocab_size: int = 16384
    num_classes: int = 1000
    num_tokens: int = 256
    adaln: Literal["none", "layer", "group"] = "layer"
    num_groups: int = 4
    position_embedding: bool = True
    d_intermediate: int = 0
    token_dropout: float = 0.0
    mixer_dropout: float = 0.0
    mlp_dropout: float = 0.0
    d_state: int = 128
    d_conv: int = 4
    expand: int = 2
    headdim: int = 64
    chunk_size: int = 256

    def __post_init__(self) -> None:
        dropouts = dict.fromkeys(("token_dropout", "mixer_dropout", "mlp_dropout"), Range(0, 1, below=True))
        check_arguments("AiMConfig.", AiMConfig, vars(self), Range(1), d_intermediate=Range(0), **dropouts)
        if self.d_inner % self.headdim:
            raise UserError(f"AiMConfig.headdim is {self.headdim}; it must divide expand * d_model = {self.d_inner}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "AiMConfig":
        """Return a published size, with single fields changed: ``AiMConfig.preset("AiM-B", num_classes=10)``.

        Raises:
            UserError: no such preset, or a value out of range.
        """
        if name not in PRESETS:
            raise UserError(f"there is no preset {name!r}; use one of {', '.join(PRESETS)}")
        return cls(**PRESETS[name] | changes)

    @property
    def d_inner(self) -> int:
        """Return the channels inside the mixer."""
        return self.expand * self.d_model

    @property
    def nheads(self) -> int:
        """Return the number of heads of the state-space layer, H."""
        return self.d_inner // self.headdim

    @property
    def conv_dim(self) -> int:
        """Return the channels of the causal convolution: x, B and C."""
        return self.d_inner + 2 * self.d_state

    @property
    def modulation_rows(self) -> int:
        """Return the rows of one layer's modulation: shift, scale, gate, each doubled when there is an MLP."""
        return 6 if self.d_intermediate else 3
