"""The real pictures that samples are compared with: worked out once by all processes, then read from a file."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from aim_lightning.data.images.pictures import Pictures
from aim_lightning.evaluation.decoded import SUFFIXES, FolderPictures, GeometryPictures
from aim_lightning.evaluation.progress import Meter
from aim_lightning.evaluation.ranks import Ranks
from aim_lightning.evaluation.sets import Batch, NpzPictures, PictureList, on_device
from aim_lightning.metrics.adm import PICTURES, adm_gaussians
from aim_lightning.metrics.cache import TensorCache
from aim_lightning.metrics.features import LOGITS, FeatureNetwork
from aim_lightning.metrics.real import RealPictures, RealPicturesBuilder, cache_values
from aim_lightning.utils.background import in_background
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import sha256_file
from aim_lightning.utils.npz import NpzFile

CACHE = ".cache/reference"
BATCH = 250
FORMS = "give an .npz file, a folder of pictures, of class folders or of image shards, or an archive of ImageNet (.tar)"


class Reference:
    """Where the real pictures are.

    Args:
        path: .npz (ADM's, or arr_0 alone), folder of pictures, of class folders, or of image shards, or one of
            ImageNet's archives (.tar); None = the training pictures of the experiment.
        pictures: the experiment's pictures; their geometry (image_size, resize, pad, crop) also applies to a `path` of
            class folders, shards or an archive.
        split: of `pictures`, which is taken without a path.

    Raises:
        UserError: neither is given, or there is nothing of the kind.
    """

    def __init__(self, path: str | Path | None, pictures: Pictures | None, split: str = "train") -> None:
        if path is None and pictures is None:
            raise UserError("there is nothing to compare with: give --reference, or an experiment with pictures")
        self.file = NpzFile(path) if path is not None and Path(path).suffix == ".npz" else None
        self.list = self._open(path, pictures, split)
        self._identity: Future[tuple] | None = None

    def _open(self, path: str | Path | None, pictures: Pictures | None, split: str) -> PictureList | None:
        if path is None:
            return GeometryPictures(pictures.open(split), Path(getattr(pictures, split)).name)
        if self.file is not None:
            return NpzPictures(path) if PICTURES in self.file else None
        path = Path(path)
        if not path.exists():
            raise UserError(f"--reference {path} does not exist; {FORMS}")
        if path.is_file() and path.suffix != ".tar":
            raise UserError(f"--reference {path} is of no known kind; {FORMS}")
        if path.is_dir() and any(file.suffix.lower() in SUFFIXES for file in path.iterdir()):
            return FolderPictures(path)
        if pictures is None:
            raise UserError(f"--reference {path} needs a geometry: give an experiment with pictures, or flat pictures")
        return GeometryPictures(replace(pictures, train=str(path)).open("train"), path.name)

    def source(self) -> dict[str, Any]:
        """Plain values that identify it."""
        if self.list is None:
            return {"kind": "npz", "name": self.file.path.name, "sha256": sha256_file(self.file.path)}
        return self.list.source()

    def begin(self) -> None:
        """Work out in a thread what `statistics` looks up in its cache: for a folder the hash of all its files."""
        self._identity = in_background(self._identify)

    def _identify(self) -> tuple[dict[str, Any], str]:
        return self.source(), "" if self.list is None else self.list.state()

    def image_size(self) -> tuple[int, int] | None:
        """Height and width of its pictures; None where it has statistics alone."""
        return None if self.list is None else tuple(self.list.images([0]).shape[2:])

    def statistics(
        self,
        network: FeatureNetwork,
        ranks: Ranks,
        cache: str | Path = CACHE,
        batch_size: int = BATCH,
        probe: bool | None = None,
        between: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    ) -> RealPictures:
        """Read from the cache, or worked out and written there. Every process must call it.

        Args:
            network: loaded.
            ranks: share the pictures.
            cache: folder.
            batch_size: pictures at once on a device.
            probe: whether a linear probe learns the classes, where there are labels; None = unless the network has
                logits of its own.
            between: given each process's batches, hands them on; what it does between them can end the work.

        Raises:
            UserError: pictures that cannot be read, or fewer than two.
        """
        if ranks.is_first and self._identity is None:
            self.begin()
        source, state = ranks.ask_first(lambda: self._identity.result())
        probe = LOGITS not in network.output_sizes() if probe is None else probe
        classes = getattr(self.list, "num_classes", 0) if probe else 0
        entry = TensorCache(cache, network.name, cache_values(network, source, classes, [state]))
        tensors = ranks.ask_first(entry.read)  # the cache of another node may be another one
        if tensors is not None:
            return RealPictures.from_tensors(tensors, source)
        real = self._work_out(network, ranks, source, classes, batch_size, between)
        if ranks.is_first:
            entry.write(real.tensors())
        ranks.from_first(None)  # nobody asks again before the file is there
        return real

    def _work_out(self, network, ranks: Ranks, source: dict, classes: int, batch_size: int, between) -> RealPictures:
        gaussians = adm_gaussians(self.file, network) if self.file is not None else {}
        if self.list is None:
            if not gaussians:
                raise UserError(f"{self.file.path} holds neither pictures (arr_0) nor statistics (mu, sigma)")
            return RealPictures(gaussians, None, None, source)
        builder = RealPicturesBuilder(network, len(self.list), classes, gaussian=not gaussians)
        with Meter("reference", len(self.list), ranks) as meter:
            batches = on_device(self.list.share(ranks, batch_size), network.device)
            for images, labels, numbers in between(batches):
                builder.add(images, labels, numbers)
                meter.advance(len(images))
        return builder.finish(source | self.list.content(ranks), gaussians)
