"""Map the names of weights in other programs' files to those of our networks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aim_lightning.utils.errors import UserError

# Added by torch.compile, DistributedDataParallel and our LightningModules.
WRAPPERS = {"_orig_mod", "module", "network"}
# Prefixes in published AiM checkpoints, and the first word of every name of the two networks.
AIM_PREFIX, VQ_PREFIX = "mamba", "vqvae"
AIM_ROOTS = {"backbone", "lm_head"}
VQ_ROOTS = {"encoder", "decoder", "quantize", "quant_conv", "post_quant_conv"}
# Two names of one tensor; files may omit either.
HEAD, WORDS = "lm_head.weight", "backbone.embeddings.word_embeddings.weight"
# Keys of the weights inside larger checkpoints; averaged ones first, as in LlamaGen.
GROUPS = ("ema", "model", "state_dict")


@dataclass
class Parts:
    """Weights of stage 2 (AiM) and of the tokenizer by name; `other` belongs to neither."""

    aim: dict[str, Tensor] = field(default_factory=dict)
    vq: dict[str, Tensor] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)


def unwrap(content: Any, raw: bool, source: str) -> tuple[Mapping[str, Any], list[str]]:
    """Return the flat mapping inside a checkpoint: under `ema`, `model` or `state_dict`, or the content itself.

    Args:
        content: of the file.
        raw: ignore averaged weights (`ema`).
        source: path for errors.

    Returns:
        the mapping, and the keys next to it that are not read.

    Raises:
        UserError: it is not a mapping by names, or there are further weights next to it, which would be lost.
    """
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{source} holds {type(content).__name__}, no mapping from names to tensors")
    # The first group that exists wins: averaged weights before trained ones.
    for key in (group for group in GROUPS if not (raw and group == "ema")):
        if isinstance(content.get(key), Mapping) and content[key]:
            others = {name: value for name, value in content.items() if name != key}
            if lost := sorted(name for name, value in others.items() if _locate(name, value)[0] != "other"):
                fact = f"{source} has weights under {key} and next to it"
                raise UserError(f"{fact}; remove one of them: {', '.join(lost)}")
            weights, deeper = unwrap(content[key], raw, source)
            return weights, sorted(others) + [f"{key}.{name}" for name in deeper]
    return {name: value for name, value in content.items() if not (raw and name == "ema")}, []


def split(content: Mapping[str, Any], source: str, tied: bool = True) -> Parts:
    """Remove wrappers and prefixes, split the weights by network, and complete the tied head.

    Args:
        content: weights by name.
        source: path for errors.
        tied: False for a network whose head may differ from its word embedding.

    Raises:
        UserError: two names become equal, so that one would be lost; a head that differs from the word embedding.
    """
    parts = Parts()
    for name, value in content.items():
        network, short = _locate(name, value)
        part = getattr(parts, network)
        if short in part:
            raise UserError(f"{source} holds {short} twice, under different prefixes (once as {name})")
        part[short] = value
    if tied:
        _tie_head(parts.aim, source)
    return parts


def _locate(name: str, value: Any) -> tuple[str, str]:
    """Return the network and its name for the weight; "other" for anything but a weight of either network."""
    if not isinstance(value, Tensor):
        return "other", name
    words = [word for word in name.split(".") if word not in WRAPPERS]
    root, rest = (words[0], ".".join(words[1:])) if words else ("", "")
    # A prefix alone decides, since tokenizer and network may share names below it.
    if root in (AIM_PREFIX, VQ_PREFIX) and rest:
        return ("aim" if root == AIM_PREFIX else "vq"), rest
    network = "aim" if root in AIM_ROOTS else "vq" if root in VQ_ROOTS else "other"
    return network, name if network == "other" else ".".join(words)


def _tie_head(aim: dict[str, Tensor], source: str) -> None:
    head, words = aim.get(HEAD), aim.get(WORDS)
    if head is None and words is None:
        return
    comparable = head is not None and words is not None and head.shape == words.shape
    if comparable and head.data_ptr() != words.data_ptr() and not torch.equal(head.float(), words.float()):
        raise UserError(f"{source}: {HEAD} differs from {WORDS}; AiM's head is tied to its word embedding")
    aim.setdefault(HEAD, words)
    aim.setdefault(WORDS, head)
