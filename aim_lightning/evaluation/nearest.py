"""The nearest training image of each sample: does the network repeat its training set?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aim_lightning.evaluation.image_sets import ExperimentImages, ImageSet, on_device
from aim_lightning.evaluation.throughput import Throughput
from aim_lightning.metrics.fdr import network_label
from aim_lightning.metrics.feature_sets import SampleFeatures, nearest_rows
from aim_lightning.metrics.features import FeatureNetwork
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.grid import captioned_grid, png_bytes
from aim_lightning.utils.pixels import to_uint8, to_unit_range
from aim_lightning.utils.precision import exact_float32

RECONSTRUCTED_AT_ONCE = 32  # images; a decoder of 256x256 pixels needs 0.1 GB each in float32
QUANTILE = 0.01  # of the distances of held-out images


@dataclass(frozen=True)
class NearestImages:
    """Find the nearest training image of each sample in the feature space of a network.

    Training and held-out images pass through the tokenizer first. A sample with the codes of a training image then has
    the distance 0 to it, and held-out images are as far from the training images as new images are. Against the
    original pixels the errors of a small tokenizer would hide copies.

    Args:
        train: training images; samples are compared with all of them.
        heldout: images that training has not used.
        network: loaded feature network.
        ranks: share the images.
        batch_size: images per step and device.
        pairs: number of samples that are shown next to their nearest training image.
    """

    train: ExperimentImages
    heldout: ExperimentImages
    network: FeatureNetwork
    ranks: ProcessGroup
    batch_size: int
    pairs: int

    def protocol(self) -> dict[str, Any]:
        """Return everything except the samples and their tokenizer that the values depend on."""
        sets = {"train": self.train.identity(), "heldout": self.heldout.identity()}
        how = {"distance": "Euclidean, float64, to reconstructions", "quantile": QUANTILE, "pairs": self.pairs}
        return sets | how | {"features": self.network.protocol()}

    def compare(self, samples: ImageSet, tokenizer: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Compare all samples with all training images. Every rank must call it.

        Args:
            samples: of any number.
            tokenizer: of the samples, on the network's device.

        Returns:
            Values by plain name: the median distance of samples and of held-out images, and the share of samples nearer
            than the 0.01 quantile of the held-out images. Then pairs at evenly spaced ranks of the distance, nearest
            first: numbers of sample and training image, the key of its file, distance.

        Raises:
            UserError: images cannot be read, or features are not finite; on all ranks.
        """
        sets = self._all_features(samples), self._all_features(self.heldout, tokenizer)
        squared, nearest = self._search(torch.cat(sets).double(), tokenizer)
        distances, heldout = squared.sqrt().split([len(samples), len(self.heldout)])
        below = (distances < heldout.quantile(QUANTILE)).double().mean()
        values = {"samples": distances.median(), "heldout": heldout.median(), "below_heldout": below}
        shown = torch.linspace(0, len(samples) - 1, min(self.pairs, len(samples))).round().long()
        chosen = distances.argsort(stable=True)[shown]
        columns = zip(chosen.tolist(), nearest[chosen].tolist(), distances[chosen].tolist(), strict=True)
        pairs = [{"sample": i, "image": j, "key": self.train.source.key(j), "distance": x} for i, j, x in columns]
        label = network_label(self.network)
        return {f"nearest_{name}_{label}": float(value) for name, value in values.items()}, pairs

    def grid(self, samples: ImageSet, pairs: list[dict[str, Any]], class_names: list[str]) -> bytes:
        """Return a PNG of samples, each with its nearest training image to the right and their distance below.

        Args:
            samples: with labels.
            pairs: from `compare`.
            class_names: one per class.
        """
        numbers = torch.tensor([pair["sample"] for pair in pairs])
        # Image sets are read in ascending order; the second argsort restores the order of the pairs.
        images = samples.read(numbers.sort().values.tolist())[numbers.argsort().argsort()]
        nearest = self.train.read([pair["image"] for pair in pairs])
        names = [class_names[label] for label in samples.labels[numbers].tolist()]
        captions = [(name, f"at {pair['distance']:.3g}") for name, pair in zip(names, pairs, strict=True)]
        return png_bytes(captioned_grid(torch.stack((images, nearest), 1).flatten(0, 1), sum(captions, ())))

    def _all_features(self, images: ImageSet, tokenizer: Any = None) -> Tensor:
        """Return the features (N, F) of all images on every rank; of their reconstructions with a tokenizer."""
        rows = SampleFeatures(self.network.num_features).to(self.network.device)

        def add() -> None:
            for features, numbers in self._features(images, tokenizer):
                rows.update(features, numbers)

        self.ranks.run_on_all(add)
        return rows.compute()

    def _features(self, images: ImageSet, tokenizer: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features and numbers of this rank's share of the images."""
        with Throughput("nearest", len(images), self.ranks) as meter:
            for batch, _, numbers in on_device(images.shard(self.ranks, self.batch_size), self.network.device):
                yield self.network(_reconstructed(batch, tokenizer) if tokenizer else batch), numbers
                meter.add(len(batch))

    def _search(self, queries: Tensor, tokenizer: Any) -> tuple[Tensor, Tensor]:
        """Return squared distance and number of the training image nearest to each query, (N,) on the CPU."""
        best = torch.full((len(queries),), torch.inf, dtype=torch.float64)
        nearest = torch.zeros(len(queries), dtype=torch.int64)

        def search() -> None:
            for rows, numbers in self._features(self.train, tokenizer):
                squared, positions = (values.cpu() for values in nearest_rows(queries, rows.double()))
                # Strictly nearer: of equal images the first one counts.
                nearest.copy_(torch.where(squared < best, numbers[positions], nearest))
                best.copy_(torch.minimum(squared, best))

        self.ranks.run_on_all(search)
        parts = [torch.stack(values) for values in zip(*self.ranks.gather((best, nearest)), strict=True)]
        best = parts[0].amin(0)
        return best, parts[1].where(parts[0] == best, len(self.train)).amin(0)


@torch.no_grad()
def _reconstructed(images: Tensor, tokenizer: Any) -> Tensor:
    with exact_float32(images.device.type):
        parts = map(to_unit_range, images.split(RECONSTRUCTED_AT_ONCE))
        return torch.cat([to_uint8(tokenizer.decode(tokenizer.encode(part))) for part in parts])
