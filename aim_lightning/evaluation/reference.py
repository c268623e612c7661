"""The real images that samples are compared with: worked out once by all processes, then read from a file."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from aim_lightning.data.images.dataset import Images
from aim_lightning.evaluation.decoded import SUFFIXES, DirectoryImages, GeometryImages
from aim_lightning.evaluation.image_sets import Batch, ImageList, NpzImages, on_device
from aim_lightning.evaluation.throughput import Throughput
from aim_lightning.metrics.adm import IMAGES, adm_gaussians
from aim_lightning.metrics.cache import TensorCache
from aim_lightning.metrics.features import LOGITS, FeatureNetwork
from aim_lightning.metrics.reference_statistics import ReferenceImages, ReferenceImagesBuilder, cache_values
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import sha256_file
from aim_lightning.utils.npz import NpzFile
from aim_lightning.utils.process import in_background

CACHE = ".cache/reference"
BATCH = 250
FORMS = "give an .npz file, a directory of images, class directories or image shards, or an archive of ImageNet (.tar)"


class Reference:
    """Where the real images are.

    Args:
        path: .npz (ADM's, or arr_0 alone), directory of images, of class directories, or of image shards, or one of
            ImageNet's archives (.tar); None = the training images of the experiment.
        images: the experiment's images; their geometry (image_size, resize, pad, crop) also applies to a `path` of
            class directories, shards or an archive.
        split: of `images`, which is taken without a path.

    Raises:
        UserError: neither is given, or there is nothing of the kind.
    """

    def __init__(self, path: str | Path | None, images: Images | None, split: str = "train") -> None:
        if path is None and images is None:
            raise UserError("there is nothing to compare with: give --reference, or an experiment with images")
        self.file = NpzFile(path) if path is not None and Path(path).suffix == ".npz" else None
        self.list = self._open(path, images, split)
        self._identity: Future[tuple] | None = None
        self._batches: Iterator[Batch] | None = None
        self._begun = False
        self._state: str | None = None  # of its files, before any was read
        self.performance: dict[str, float] = {}  # of working out the statistics, where that was needed

    def _open(self, path: str | Path | None, images: Images | None, split: str) -> ImageList | None:
        if path is None:
            return GeometryImages(images.open(split), Path(getattr(images, split)).name)
        if self.file is not None:
            return NpzImages(path) if IMAGES in self.file else None
        path = Path(path)
        if not path.exists():
            raise UserError(f"--reference {path} does not exist; {FORMS}")
        if path.is_file() and path.suffix != ".tar":
            raise UserError(f"--reference {path} is of no known kind; {FORMS}")
        if path.is_dir() and any(file.suffix.lower() in SUFFIXES for file in path.iterdir()):
            return DirectoryImages(path)
        if images is None:
            raise UserError(f"--reference {path} needs a geometry: give an experiment with images, or flat images")
        return GeometryImages(replace(images, train=str(path)).open("train"), path.name)

    def source(self) -> dict[str, Any]:
        """Plain values that identify it."""
        if self.list is None:
            return {"kind": "npz", "name": self.file.path.name, "sha256": sha256_file(self.file.path)}
        return self.list.source()

    def begin(self, network: FeatureNetwork, ranks: ProcessGroup, cache: str | Path, batch_size: int) -> None:
        """Begin what `statistics` will need, early; every process must call it, with the same arguments.

        Where the cache has nothing of this network the images are decoded, which tells a directory's hash besides; else
        a thread works out what the cache is asked for, for a directory the hash of all its files.
        """
        self._begun = True
        ask = ranks.on_rank0(lambda: self._ask(cache, network.name))
        if self.list is not None and not ask:
            self._batches = self.list.shard(ranks, batch_size)
        if ranks.is_rank_zero and (ask or self.list is None or not self.list.known_by_reading):
            self._identity = in_background(self._identify)

    def _ask(self, cache: str | Path, name: str) -> bool:
        """Whether to ask the cache. If not, the state of files is taken before they are read: edits must change it."""
        ask = TensorCache.has_any(cache, name)
        if self.list is not None and not ask:
            self._state = self.list.state()
        return ask

    def _identify(self) -> tuple[dict[str, Any], str]:
        if self._state is None:
            self._state = "" if self.list is None else self.list.state()
        return self.source(), self._state

    def _identified(self) -> tuple[dict[str, Any], str]:
        return self._identity.result() if self._identity else self._identify()

    def image_size(self) -> tuple[int, int] | None:
        """Height and width of its images; None where it has statistics alone."""
        return None if self.list is None else tuple(self.list.images([0]).shape[2:])

    def statistics(
        self,
        network: FeatureNetwork,
        ranks: ProcessGroup,
        cache: str | Path = CACHE,
        batch_size: int = BATCH,
        probe: bool | None = None,
        between: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    ) -> ReferenceImages:
        """Read from the cache, or worked out and written there. Every process must call it.

        Args:
            network: loaded.
            ranks: share the images.
            cache: directory.
            batch_size: images at once on a device.
            probe: whether a linear probe learns the classes, where there are labels; None = unless the network has
                logits of its own.
            between: given each process's batches, hands them on; what it does between them can end the work. Where it
                waits for other processes it must go on with that until all are through, also after a mistake.

        Raises:
            UserError: images that cannot be read, or fewer than two; on all processes.
        """
        if not self._begun:
            self.begin(network, ranks, cache, batch_size)
        probe = LOGITS not in network.output_sizes() if probe is None else probe
        classes = getattr(self.list, "num_classes", 0) if probe else 0
        lookup = partial(self._entry, network, cache, classes)
        if not ranks.broadcast(self._batches is not None):
            tensors, source = ranks.on_rank0(lambda: self._read(lookup))  # another node's cache may be another one
            if tensors is not None:
                return ReferenceImages.from_tensors(tensors, source)
        real = self._work_out(network, ranks, classes, batch_size, between)
        if ranks.is_rank_zero:
            lookup().write(real.tensors())
        ranks.broadcast(None)  # nobody asks again before the file is there
        return real

    def _entry(self, network: FeatureNetwork, cache: str | Path, classes: int) -> TensorCache:
        source, state = self._identified()
        return TensorCache(cache, network.name, cache_values(network, source, classes, [state]))

    def _read(self, lookup: Callable[[], TensorCache]) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
        return lookup().read(), self._identified()[0]

    def _work_out(self, network, ranks: ProcessGroup, classes: int, batch_size: int, between) -> ReferenceImages:
        gaussians = adm_gaussians(self.file, network) if self.file is not None else {}
        if self.list is None:
            if not gaussians:
                raise UserError(f"{self.file.path} holds neither images (arr_0) nor statistics (mu, sigma)")
            return ReferenceImages(gaussians, None, None, ranks.on_rank0(self._identified)[0])
        builder = ReferenceImagesBuilder(network, len(self.list), classes, gaussian=not gaussians)
        with Throughput("reference", len(self.list), ranks) as meter:
            batches = between(on_device(self._batches or self.list.shard(ranks, batch_size), network.device))
            ranks.run_on_all(lambda: _add(builder, batches, meter))
        self.performance, self._batches = meter.performance(), None
        self.list.gather(ranks)
        if self.list.known_by_reading:
            self._identity = None  # what was read counts: a file may have changed since it was hashed
        source = ranks.on_rank0(self._identified)[0]
        return builder.finish(source | self.list.content(), gaussians)


def _add(builder: ReferenceImagesBuilder, batches: Iterable[Batch], meter: Throughput) -> None:
    for images, labels, numbers in batches:
        builder.add(images, labels, numbers)
        meter.advance(len(images))
