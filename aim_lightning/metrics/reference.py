"""What the metrics need to know of the real pictures, computed once and kept in a file."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aim_lightning.metrics.cache import TensorCache
from aim_lightning.metrics.features import FeatureNetwork
from aim_lightning.metrics.frechet import REFERENCE_STATES, FrechetDistance
from aim_lightning.metrics.probe import LinearProbe
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.random import hash_int64

FORMAT = 1  # raise it when the same inputs give other values
PROBE_ROWS = 50_000  # pictures that the probe learns from: their features stay in memory

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ReferenceStatistics:
    """Everything about the real pictures that metrics compare with, on the CPU.

    Args:
        frechet: for `FrechetDistance.load_reference`.
        probe_weight: (C, F) float64, for `LinearProbe.from_state`; empty without a probe.
        probe_bias: (C,) float64.
        class_names: one a class.
        rows: real pictures in `frechet`.
    """

    frechet: dict[str, Tensor]
    probe_weight: Tensor
    probe_bias: Tensor
    class_names: tuple[str, ...]
    rows: int


def cached_reference(
    cache_dir: str | Path,
    data_fingerprint: str,
    network: FeatureNetwork,
    batches: Callable[[], Batches],
    num_classes: int,
    progress: Callable[[int], None] | None = None,
    class_names: Sequence[str] | None = None,
    probe_rows: int = PROBE_ROWS,
) -> ReferenceStatistics:
    """Read the statistics from `cache_dir`, or take them over all batches and write them there.

    For one process: in a distributed run rank zero calls it first, and the others when its file is there.

    Args:
        cache_dir: folder, made when missing.
        data_fingerprint: changes whenever the pictures or labels do.
        network: loaded; runs on its own device.
        batches: called only when there is no file: gives (uint8 (B, 3, H, W), integer (B,)) pairs.
        num_classes: labels are 0..num_classes-1.
        progress: called after each batch with the number of pictures so far.
        class_names: None for "0", "1" and so on.
        probe_rows: the probe learns from this many pictures at most, picked by their place in the order; 0 = no
            probe.

    Raises:
        UserError: fewer than two pictures.
    """
    names = tuple(map(str, class_names or range(num_classes)))
    values = [FORMAT, data_fingerprint, network.protocol(), num_classes, probe_rows, LinearProbe().settings()]
    cache = TensorCache(cache_dir, network.name, values)
    tensors = cache.read()
    if tensors is None:
        tensors = _compute(network, batches(), num_classes, progress, probe_rows)
        cache.write(tensors)
    frechet = {name: tensors[name] for name in REFERENCE_STATES}
    return ReferenceStatistics(
        frechet, tensors["probe_weight"], tensors["probe_bias"], names, rows=int(tensors["count"])
    )


def _compute(
    network: FeatureNetwork,
    batches: Batches,
    num_classes: int,
    progress: Callable[[int], None] | None,
    probe_rows: int,
) -> dict[str, Tensor]:
    distance = FrechetDistance(network, sync_on_compute=False).to(network.device)
    chosen = _ProbeRows(probe_rows)
    for images, labels in batches:
        features = network(images.to(network.device))
        distance.update_features(features, real=True)
        if probe_rows:
            chosen.add(features, labels.to(network.device))
        if progress is not None:
            progress(distance.real_count)
    if distance.real_count < 2:
        raise UserError(f"reference statistics need at least two pictures; the data gave {distance.real_count}")
    probe = LinearProbe().fit(*chosen.pick(), num_classes) if probe_rows else LinearProbe()
    tensors = distance.reference_state() | {"probe_weight": probe.weight, "probe_bias": probe.bias}
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


class _ProbeRows:
    """The rows of smallest hash among all so far: an even pick from a stream of any length and order."""

    def __init__(self, limit: int) -> None:
        self.limit, self.seen, self.held = limit, 0, 0
        self.parts: list[tuple[Tensor, ...]] = []

    def add(self, features: Tensor, labels: Tensor) -> None:
        rows = torch.arange(self.seen, self.seen + len(labels), device=labels.device)
        self.parts.append((hash_int64("probe_row", rows), features, labels))
        self.seen, self.held = self.seen + len(labels), self.held + len(labels)
        if self.held > 2 * self.limit:
            self.pick()

    def pick(self) -> tuple[Tensor, Tensor]:
        """Features (N, F) and labels (N,) of `limit` rows, or of all when there are fewer."""
        hashes, features, labels = (torch.cat(column) for column in zip(*self.parts, strict=True))
        best = hashes.argsort()[: self.limit]
        self.parts, self.held = [(hashes[best], features[best], labels[best])], len(best)
        return features[best], labels[best]
