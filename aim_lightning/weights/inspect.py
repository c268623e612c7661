"""Describe a source of weights, for `aim-lightning weights inspect`."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from aim_lightning.checkpoint.io import incompatible
from aim_lightning.models import NETWORKS, VQModel
from aim_lightning.models.vq.model import USAGE_RECORD
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import sha256_file
from aim_lightning.weights.infer_config import aim_config, network_class, vq_config
from aim_lightning.weights.key_mapping import HEAD
from aim_lightning.weights.load import aim_weights, vq_weights
from aim_lightning.weights.source import Source, find_file, read_source, weight_files


@dataclass
class Part:
    """One network of a source.

    Args:
        kind: noun for the network.
        configuration: inferred options; empty where inference failed.
        parameters: number of parameters, with the tied head counted once.
        types: number of tensors by dtype.
        faults: missing, surplus, misshapen and non-floating names; empty where the network can be loaded.
    """

    kind: str
    configuration: dict = field(default_factory=dict)
    parameters: int = 0
    types: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


@dataclass
class Report:
    """Origin of the weights, (path, bytes, sha256) of each file, the networks, and names that are not read."""

    origin: str
    files: list[tuple[str, int, str]]
    parts: list[Part]
    unread: list[str] = field(default_factory=list)


def inspect(path: str | Path, *, raw: bool = False) -> Report:
    """Read a source completely and compare its names and shapes with networks on the meta device.

    Raises:
        UserError: as `read_source`; faults of names are reported instead.
    """
    source = read_source(path, raw=raw)
    paths = weight_files(find_file(Path(path)))
    files = [(str(file), file.stat().st_size, sha256_file(file)) for file in paths]
    return Report(_origin(source, raw), files, list(_parts(source)), source.unread)


def _parts(source: Source) -> Iterator[Part]:
    if source.parts.aim:
        network = NETWORKS[network_class(source)]
        yield _part(network.__name__, source.parts.aim, lambda: (network(aim_config(source)), aim_weights(source)))
    if source.parts.vq:
        yield _part("VQ tokenizer", source.parts.vq, lambda: _tokenizer(source))


def _tokenizer(source: Source) -> tuple[VQModel, dict[str, Tensor]]:
    network = VQModel(vq_config(source))
    return network, vq_weights(source, network.config)


def _part(kind: str, weights: dict[str, Tensor], build: Callable[[], tuple[nn.Module, dict[str, Tensor]]]) -> Part:
    part = Part(kind, types=dict(Counter(str(value.dtype).removeprefix("torch.") for value in weights.values())))
    # The tied head and the record of used codes are tensors of the file, but no parameters of their own.
    part.parameters = sum(value.numel() for name, value in weights.items() if name not in (HEAD, USAGE_RECORD))
    try:
        # The meta device holds shapes only, so that a large network needs no memory.
        with torch.device("meta"):
            network, complete = build()
    except UserError as error:
        part.faults = [str(error)]
        return part
    part.configuration = asdict(network.config)
    part.parameters = sum(parameter.numel() for parameter in network.parameters())
    # No limit: a report lists every name, an error only the first ones.
    part.faults = incompatible(network, complete, limit=None)
    return part


def _origin(source: Source, raw: bool) -> str:
    if source.run is not None:
        averaged = source.run.get("ema") and not raw
        return f"checkpoint of this project, {'averaged (EMA)' if averaged else 'raw'} weights"
    return "Hugging Face directory" if source.published is not None else "weights file"
