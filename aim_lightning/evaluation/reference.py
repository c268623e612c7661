"""The reference images that samples are compared with; all ranks compute their statistics once."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from aim_lightning.data.images.dataset import Images
from aim_lightning.evaluation.image_sets import (
    SUFFIXES,
    Batch,
    DirectoryImages,
    ExperimentImages,
    ImageSet,
    NpzImages,
    on_device,
)
from aim_lightning.evaluation.reference_cache import CACHE, ReferenceCache
from aim_lightning.evaluation.throughput import Throughput
from aim_lightning.metrics.features import LOGITS, FeatureNetwork
from aim_lightning.metrics.reference_statistics import (
    IMAGES,
    PIXELS,
    ReferenceImages,
    ReferenceImagesBuilder,
    adm_gaussians,
    cache_values,
)
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import sha256_file
from aim_lightning.utils.npz import NpzFile

BATCH = 250
FORMS = "give an .npz file, a directory of images, class directories or image shards, or an archive of ImageNet (.tar)"


class Reference:
    """A source of reference images and its statistics.

    Args:
        path: .npz (ADM's, or arr_0 alone), directory of images, of class directories, or of image shards, or one of
            ImageNet's archives (.tar); None = images of the experiment.
        images: the experiment's images; their geometry (image_size, resize, pad, crop) also applies to a `path` of
            class directories, shards or an archive.
        split: of `images`, used without a path.

    Raises:
        UserError: both are None, or the path is missing or unsupported.
    """

    def __init__(self, path: str | Path | None, images: Images | None, split: str = "train") -> None:
        if path is None and images is None:
            raise UserError("no reference images; give --reference, or an experiment with images")
        self.file = NpzFile(path) if path is not None and Path(path).suffix == ".npz" else None
        self.images = self._open(path, images, split)  # None: an .npz with statistics only
        self.performance: dict[str, float] = {}  # of computing the statistics, empty where the cache had them

    def _open(self, path: str | Path | None, images: Images | None, split: str) -> ImageSet | None:
        if path is None:
            return ExperimentImages(images.open(split), Path(getattr(images, split)).name)
        if self.file is not None:
            return NpzImages(path) if IMAGES in self.file else None
        path = Path(path)
        if not path.exists():
            raise UserError(f"--reference {path} does not exist; {FORMS}")
        if path.is_file() and path.suffix != ".tar":
            raise UserError(f"--reference {path} is not supported; {FORMS}")
        if path.is_dir() and any(file.suffix.lower() in SUFFIXES for file in path.iterdir()):
            return DirectoryImages(path)
        if images is None:
            raise UserError(f"--reference {path} needs a geometry; give an experiment with images, or flat images")
        return ExperimentImages(replace(images, train=str(path)).open("train"), path.name)

    def identity(self) -> dict[str, Any]:
        """Return plain values that identify the reference, for the protocol."""
        if self.images is None:
            return {"kind": "npz", "name": self.file.path.name, "sha256": sha256_file(self.file.path)}
        return self.images.identity()

    def image_size(self) -> tuple[int, int] | None:
        """Return height and width of the images; None for an .npz with statistics only."""
        return None if self.images is None else tuple(self.images.read([0]).shape[2:])

    def statistics(
        self,
        network: FeatureNetwork,
        ranks: ProcessGroup,
        cache: str | Path = CACHE,
        batch_size: int = BATCH,
        probe: bool | None = None,
        between: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    ) -> ReferenceImages:
        """Return the statistics from the cache, or compute them and write them there. Every rank must call it.

        Args:
            network: loaded.
            ranks: share the images.
            cache: directory.
            batch_size: images per step and device.
            probe: fit a linear probe on the classes, where there are labels; None = unless the network has logits.
            between: receives each rank's batches and yields them; between two of them it can end the work. Where it
                waits for other ranks it must continue until all ranks finish, also after an error.

        Raises:
            UserError: images cannot be read, were edited meanwhile, or are fewer than two; on all ranks.
        """
        state, identity = ranks.on_rank0(self._identify)
        probe = LOGITS not in network.output_sizes() if probe is None else probe
        classes = getattr(self.images, "num_classes", 0) if probe else 0
        # Without a hash of the content an edit shows in the modification times only.
        times = "" if "sha256" in identity else state
        file = ReferenceCache(cache, network.name, cache_values(network, identity, classes, [times]))
        tensors = ranks.on_rank0(file.read)  # broadcast: another node may have another cache
        if tensors is not None:
            return ReferenceImages.from_tensors(tensors, identity)
        statistics = self._compute(network, ranks, identity, classes, batch_size, between)
        ranks.on_rank0(lambda: self._write(file, statistics, state))
        return statistics

    def _identify(self) -> tuple[str, dict[str, Any]]:
        # The state comes first: an edit during hashing or reading must change it.
        return "" if self.images is None else self.images.state(), self.identity()

    def _write(self, file: ReferenceCache, statistics: ReferenceImages, state: str) -> None:
        if self.images is not None and self.images.state() != state:
            raise UserError("reference images changed while they were read; run the command again")
        file.write(statistics.tensors())

    def _compute(
        self, network: FeatureNetwork, ranks: ProcessGroup, identity: dict[str, Any], classes: int, batch_size, between
    ) -> ReferenceImages:
        gaussians = adm_gaussians(self.file, network) if self.file is not None else {}
        if self.images is None:
            if not gaussians:
                raise UserError(f"{self.file.path} contains neither images (arr_0) nor statistics (mu, sigma)")
            return ReferenceImages(gaussians, None, None, identity)
        builder = ReferenceImagesBuilder(network, len(self.images), classes, gaussian=not gaussians)
        digests = np.zeros((len(self.images), hashlib.sha256().digest_size), np.uint8)
        batches = self.images.shard(ranks, batch_size)
        if "sha256" not in identity:
            batches = _hash_pixels(batches, digests)
        with Throughput("reference", len(self.images), ranks) as meter:
            ranks.run_on_all(lambda: _add(builder, between(on_device(batches, network.device)), meter))
        self.performance = meter.performance()
        if "sha256" not in identity:
            # Each rank has filled the rows of its own share.
            digests = np.bitwise_or.reduce(ranks.gather(digests))
            identity = identity | {PIXELS: hashlib.sha256(digests.tobytes()).hexdigest()}
        return builder.finish(identity, gaussians)


def _hash_pixels(batches: Iterable[Batch], digests: np.ndarray) -> Iterator[Batch]:
    """Write the sha256 of each image's pixels into its row of the digests, uint8 (N, 32)."""
    for images, labels, numbers in batches:
        for number, image in zip(numbers.tolist(), images, strict=True):
            digests[number] = _digest(image)
        yield images, labels, numbers


def _digest(image: Tensor) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(image.numpy().tobytes()).digest(), np.uint8)


def _add(builder: ReferenceImagesBuilder, batches: Iterable[Batch], meter: Throughput) -> None:
    for images, labels, numbers in batches:
        builder.add(images, labels, numbers)
        meter.advance(len(images))
