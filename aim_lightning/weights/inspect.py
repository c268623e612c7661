"""What a source of weights holds, for `aim-lightning weights inspect`."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from aim_lightning.checkpoint.io import incompatible
from aim_lightning.models import AiM, VQModel
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import sha256_file
from aim_lightning.weights.configure import aim_config, vq_config
from aim_lightning.weights.files import weight_files
from aim_lightning.weights.load import aim_weights, vq_weights
from aim_lightning.weights.source import Source, find_file, read_source


@dataclass
class Part:
    """One network of a source.

    Args:
        kind: what it is.
        configuration: inferred options; empty where nothing could be inferred.
        parameters: of the network of that configuration (the tied head counted once).
        types: number of tensors by dtype.
        faults: missing, surplus, misshapen and non-floating names, all of them; empty where it can be imported.
    """

    kind: str
    configuration: dict = field(default_factory=dict)
    parameters: int = 0
    types: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


@dataclass
class Report:
    """Origin of the weights, (path, bytes, sha256) of each file, the networks in them, and names left unread."""

    origin: str
    files: list[tuple[str, int, str]]
    parts: list[Part]
    unread: list[str] = field(default_factory=list)


def inspect(path: str | Path, *, raw: bool = False) -> Report:
    """Read everything but build networks without memory only.

    Raises:
        UserError: as `read_source`; faults of names are reported instead.
    """
    source = read_source(path, raw=raw)
    files = [(str(file), file.stat().st_size, sha256_file(file)) for file in _files(Path(path))]
    return Report(_origin(source, raw), files, list(_parts(source)), source.unread)


def _parts(source: Source) -> Iterator[Part]:
    if source.parts.aim:
        yield _part("AiM", source.parts.aim, lambda: _aim(source))
    if source.parts.vq:
        yield _part("VQ tokenizer", source.parts.vq, lambda: _vq(source))


def _part(kind: str, weights: Mapping[str, Tensor], build) -> Part:
    part = Part(kind, types=dict(Counter(str(value.dtype).removeprefix("torch.") for value in weights.values())))
    try:
        network, complete = build()
    except UserError as error:
        part.faults = [str(error)]
        return part
    part.configuration = asdict(network.config)
    part.parameters = sum(parameter.numel() for parameter in network.parameters())
    part.faults = incompatible(network, complete, limit=None)
    return part


def _aim(source: Source) -> tuple[AiM, Mapping[str, Tensor]]:
    config = aim_config(source)
    with torch.device("meta"):
        return AiM(config), aim_weights(source)


def _vq(source: Source) -> tuple[VQModel, Mapping[str, Tensor]]:
    config = vq_config(source)
    with torch.device("meta"):
        return VQModel(config), vq_weights(source, config)


def _files(path: Path) -> list[Path]:
    return weight_files(find_file(path))


def _origin(source: Source, raw: bool) -> str:
    if source.run is not None:
        averaged = source.run.get("ema") and not raw
        return f"checkpoint of this project, {'averaged (EMA)' if averaged else 'raw'} weights"
    return "Hugging Face directory" if source.published is not None else "weights file"
