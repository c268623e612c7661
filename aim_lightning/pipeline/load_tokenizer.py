"""The frozen tokenizer of a generator: VQ weights from anywhere, or any class that meets the protocol."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.instantiate import build_object
from aim_lightning.weights import Source, import_vq

PROTOCOL = ("encode", "decode", "grid", "codebook_size", "weights_hash")


def load_tokenizer(source: str | Path | Mapping[str, Any], *, raw: bool = False) -> Any:
    """What the key `tokenizer` names, in evaluation mode and without gradients, on the CPU.

    Args:
        source: a run, a checkpoint or published weights of a VQ tokenizer (see `aim_lightning.weights`); or a mapping
            of class_path and init_args: any torch module with `encode`, `decode`, `grid`, `codebook_size` and
            `weights_hash` (docs/extending.md). Its code is run.
        raw: of VQ weights, the trained ones themselves instead of their average.

    Raises:
        UserError: no weights, or those of another model; no such class, or one that lacks part of the protocol.
    """
    foreign = isinstance(source, Mapping) and "class_path" in source
    tokenizer = _foreign(source) if foreign else import_vq(source, raw=raw)
    return tokenizer.eval().requires_grad_(False)


def check_hash(source: Source, tokenizer: Any) -> None:
    """Whether the tokenizer is the one whose codes the source's AiM was trained on, where it tells.

    Raises:
        UserError: it is another one.
    """
    trained_on = source.tokenizer_hash
    if trained_on and tokenizer.weights_hash != trained_on:
        raise UserError(
            f"{source.name} was trained on the codes of another tokenizer (weights hash {trained_on[:12]}…); "
            "give that one: tokenizer= or --tokenizer"
        )


def _foreign(section: Mapping[str, Any]) -> nn.Module:
    tokenizer = build_object(section, nn.Module, "tokenizer")
    lacking = [name for name in PROTOCOL if not hasattr(tokenizer, name)]
    if lacking:
        raise UserError(f"tokenizer: {section['class_path']} has no {', '.join(lacking)}; see docs/extending.md")
    return tokenizer
