"""The reference images that samples are compared with; all ranks compute their statistics once, then cache them."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aim_lightning.data.images.dataset import Images
from aim_lightning.evaluation import image_sets
from aim_lightning.evaluation.image_sets import Batch, Between, ImageSet
from aim_lightning.evaluation.throughput import Throughput
from aim_lightning.metrics.features import LOGITS, FeatureNetwork
from aim_lightning.metrics.reference_statistics import IMAGES, ReferenceImages, ReferenceImagesBuilder, adm_gaussians
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import atomic_path, sha256_file
from aim_lightning.utils.npz import NpzFile
from aim_lightning.utils.tensor_hash import hash_tensors

BATCH, CACHE = 250, ".cache/reference"
FORMAT = 3  # of cache files; increase it when the same inputs give other statistics
FORMS = "give an .npz file, a directory of images, class directories or image shards, or an archive of ImageNet (.tar)"


class Reference:
    """A source of reference images and its statistics.

    Args:
        path: .npz (ADM's, or arr_0 alone), directory of images, of class directories, or of image shards, or one of
            ImageNet's archives (.tar); None = images of the experiment.
        images: the experiment's images; their geometry (image_size, resize, pad, crop, background) also applies to a
            `path` of class directories, shards or an archive.
        split: of `images`, used without a path.
        option: name of the option in errors.

    Raises:
        UserError: both are None, or the path is missing or unsupported.
    """

    def __init__(
        self, path: str | Path | None, images: Images | None, split: str = "train", option: str = "--reference"
    ) -> None:
        self.option = option
        if path is None and images is None:
            raise UserError(f"no images for {option}; give a path, or an experiment with images")
        self.file = NpzFile(path) if path is not None and Path(path).suffix == ".npz" else None
        self.images = self._open(path, images, split)  # None: an .npz with statistics only
        self.performance: dict[str, float] = {}  # of computing the statistics, empty where the cache had them

    def _open(self, path: str | Path | None, images: Images | None, split: str) -> ImageSet | None:
        if path is None:
            return image_sets.ExperimentImages(images.open(split), Path(getattr(images, split)).name)
        if self.file is not None:
            return image_sets.NpzImages(path) if IMAGES in self.file else None
        path = Path(path)
        if not path.exists():
            raise UserError(f"{self.option} {path} does not exist; {FORMS}")
        if path.is_file() and path.suffix != ".tar":
            raise UserError(f"{self.option} {path} is not supported; {FORMS}")
        if path.is_dir() and any(file.suffix.lower() in image_sets.SUFFIXES for file in path.iterdir()):
            return image_sets.DirectoryImages(path)
        if images is None:
            raise UserError(f"{self.option} {path} needs a geometry; give an experiment with images, or flat images")
        return image_sets.ExperimentImages(replace(images, train=str(path)).open("train"), path.name)

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
        between: Between = iter,
    ) -> ReferenceImages:
        """Return the statistics from the cache, or compute and cache them. Every rank must call it.

        Args:
            network: loaded.
            ranks: share the images.
            cache: directory.
            batch_size: images per step and device.
            probe: fit a linear probe on the classes, if the images have labels; None = unless the network has logits.
            between: receives each rank's batches and yields them; between two of them it can end the work. Where it
                waits for other ranks it must continue until all ranks finish, also after an error.

        Raises:
            UserError: images cannot be read, were edited meanwhile, or are fewer than two; on all ranks.
        """
        # The state comes first: an edit during hashing or reading must change it.
        state, identity = ranks.on_rank0(lambda: (self._state(), self.identity()))
        probe = LOGITS not in network.output_sizes() if probe is None else probe
        classes = getattr(self.images, "num_classes", 0) if probe else 0
        # Without a hash of the content an edit shows in the modification times only.
        times = "" if "sha256" in identity else state
        made_from = json.dumps([FORMAT, identity, network.protocol(), classes, times], sort_keys=True)
        key = hashlib.sha256(made_from.encode()).hexdigest()
        path = Path(cache) / f"{network.name}-{key[:16]}.safetensors"
        cached = ranks.on_rank0(lambda: _read(path, key))  # broadcast: another node may have another cache
        if cached is not None:
            return ReferenceImages.from_tensors(*cached)
        statistics = self._compute(network, ranks, identity, classes, batch_size, between)
        metadata = {"key": key, "made_from": made_from, "source": json.dumps(statistics.source)}
        ranks.on_rank0(lambda: self._write(path, statistics.tensors(), metadata, state))
        return statistics

    def _state(self) -> str:
        return "" if self.images is None else self.images.state()

    def _write(self, path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], state: str) -> None:
        if self._state() != state:
            raise UserError("reference images changed while they were read; run the command again")
        try:
            with atomic_path(path) as temporary:
                save_file(tensors, temporary, metadata | {"sha256": hash_tensors(tensors, metadata["source"])})
        except (SafetensorError, OSError) as error:  # the former for a full disk
            warnings.warn(f"{path} cannot be written ({error}); the next evaluation computes it again", stacklevel=3)

    def _compute(
        self, network: FeatureNetwork, ranks: ProcessGroup, identity: dict[str, Any], classes: int, batch_size, between
    ) -> ReferenceImages:
        gaussians = adm_gaussians(self.file, network) if self.file is not None else {}
        if self.images is None:
            if not gaussians:
                raise UserError(f"{self.file.path} contains neither images (arr_0) nor statistics (mu, sigma)")
            return ReferenceImages(gaussians, None, None, identity)
        builder = ReferenceImagesBuilder(network, len(self.images), classes, gaussians)
        digests = np.zeros((len(self.images), hashlib.sha256().digest_size), np.uint8)
        batches = self.images.shard(ranks, batch_size)
        if "sha256" not in identity:
            batches = _hash_pixels(batches, digests)
        with Throughput("reference", len(self.images), ranks) as meter:
            ranks.run_on_all(lambda: _add(builder, between(image_sets.on_device(batches, network.device)), meter))
        self.performance = meter.performance()
        if "sha256" not in identity:
            # Each rank has filled the rows of its share; the others are 0.
            digests = np.bitwise_or.reduce(ranks.gather(digests))
            identity = identity | {"pixels_sha256": hashlib.sha256(digests.tobytes()).hexdigest()}
        return builder.finish(identity)


def _hash_pixels(batches: Iterable[Batch], digests: np.ndarray) -> Iterator[Batch]:
    """Write the sha256 of each image's pixels into its row of the digests, uint8 (N, 32)."""
    for images, labels, numbers in batches:
        for number, image in zip(numbers.tolist(), images, strict=True):
            digests[number] = np.frombuffer(hashlib.sha256(image.numpy().tobytes()).digest(), np.uint8)
        yield images, labels, numbers


def _add(builder: ReferenceImagesBuilder, batches: Iterable[Batch], meter: Throughput) -> None:
    for images, labels, numbers in batches:
        builder.add(images, labels, numbers)
        meter.add(len(images))


def _read(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the tensors and the source of a cache file, or None where it is missing or damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        # safetensors checks the length only, so the metadata contains a hash of the content.
        if (metadata.get("key"), metadata.get("sha256")) == (key, hash_tensors(tensors, metadata.get("source", ""))):
            return tensors, json.loads(metadata["source"])
        reason = "its content has changed"
    except (SafetensorError, OSError) as error:
        reason = str(error)
    warnings.warn(f"reference statistics {path} are damaged ({reason}); computing them again", stacklevel=3)
    return None
