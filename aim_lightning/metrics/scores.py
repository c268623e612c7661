"""All metrics of a set of images from one pass over its features."""

from typing import Any

import torch
from torch import Tensor, nn

from aim_lightning.metrics.features import FEATURES, LOGITS, FeatureNetwork
from aim_lightning.metrics.fid import FrechetDistance
from aim_lightning.metrics.inception_score import InceptionScore, Splitting
from aim_lightning.metrics.kid import KernelDistance
from aim_lightning.metrics.precision_recall import NEIGHBOUR, PrecisionRecall
from aim_lightning.metrics.probe import ClassAgreement, LinearProbe
from aim_lightning.metrics.reference_statistics import ReferenceImages
from aim_lightning.utils.errors import UserError


def least_images(compare: bool) -> int:
    """How many images either side needs at least, with or without precision, recall and kernel distance."""
    return NEIGHBOUR + 1 if compare else 2


class Scores(nn.Module):
    """What network and real images allow: distances always, on Inception also sFID and Inception Score, with single
    real images also kernel distance, precision and recall, with labels also class agreement.

    Each process feeds its own images with their numbers in the whole set; `compute` puts all together.

    Args:
        network: loaded.
        real: statistics of the real images.
        num_images: in the whole set.
        splitting: of the Inception Score.
        compare: whether single images are compared: False saves the memory and time of precision, recall and kernel
            distance.

    Raises:
        UserError: too few images on either side.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        real: ReferenceImages,
        num_images: int,
        splitting: Splitting = "adm",
        compare: bool = True,
    ) -> None:
        super().__init__()
        self.real, self.num_images, self.splitting = real, num_images, splitting
        self.__dict__["network"] = network  # frozen, and no part of this module
        sizes = network.output_sizes()
        self.distances = nn.ModuleDict()
        for output, (mean, covariance) in real.gaussians.items():
            self.distances[output] = FrechetDistance(network, sizes[output])
            self.distances[output].load_gaussian(mean, covariance, real.count)
        self.inception = InceptionScore(num_images, splitting, sizes[LOGITS]) if LOGITS in sizes else None
        compare = compare and real.features is not None
        _check_numbers(num_images, len(real.features) if compare else None)
        self.kernel = KernelDistance(real.features) if compare else None
        self.neighbours = PrecisionRecall(real.features, memo=real.memo) if compare else None
        self.agreement = ClassAgreement(LinearProbe.from_state(*real.probe)) if real.probe else None
        self.to(network.device)

    def update(self, images: Tensor, indices: Tensor, labels: Tensor | None = None) -> None:
        """Add images, uint8 (B, 3, H, W), with their numbers (B,) and the classes asked for (B,); B may be 0.

        Raises:
            ValueError: anything but uint8 images.
        """
        outputs = self.network.outputs(images.to(self.network.device))
        for output, distance in self.distances.items():
            distance.update_features(outputs[output], real=False)
        if self.inception is not None:
            self.inception.update(outputs[LOGITS], indices)
        for metric in (self.kernel, self.neighbours):  # both hold the same tensors: no memory for a second copy
            if metric is not None:
                metric.update(outputs[FEATURES], indices)
        if self.agreement is not None:
            known = 0 if labels is None else len(labels)  # without labels the metric stays empty
            asked = torch.zeros(0, dtype=torch.int64) if labels is None else labels
            place = outputs[FEATURES].device
            self.agreement.update(outputs[FEATURES][:known], asked.to(place, non_blocking=True))

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """Every value by its name without the number of images; every process must call it.

        Raises:
            UserError: features were not finite; on all processes.
        """
        values = [distance.compute() for distance in self.distances.values()]
        if self.inception is not None:
            values += self.inception.compute().values()
        if self.kernel is not None:
            kernel, shares = self.kernel.compute(), self.neighbours.compute()
            values += [*list(kernel.values())[: 1 if self.network.name_ending else 2], *shares.values()]
        if self.agreement is not None:
            values.append(self.agreement.compute())
        named = dict(zip(self.names(), map(float, values), strict=True))
        if named.get("class_agreement") != named.get("class_agreement"):  # NaN: there were no labels
            del named["class_agreement"]
        return named

    def names(self) -> list[str]:
        """Of the values; class agreement falls away without labels. Names of features other than the published
        Inception's say so: a stand-in is never taken for the real."""
        ending = self.network.name_ending
        found = [self._name(output) for output in self.distances]
        if self.inception is not None:
            found += [f"is{ending}", f"is_std{ending}"]
        if self.kernel is not None:
            kernel = [f"kd{ending}"] if ending else ["kid", "kid_std"]
            found += [*kernel, f"precision{ending}", f"recall{ending}"]
        return [*found, *(["class_agreement"] if self.agreement is not None else [])]

    def reset(self) -> None:
        """Forget the images, not the real ones. Use one object again and again: torchmetrics' objects are held by
        cycles, so that new ones would leave their memory to Python's garbage collector."""
        metrics = (self.inception, self.kernel, self.neighbours, self.agreement)
        for metric in (*self.distances.values(), *metrics):
            if metric is not None:
                metric.reset()

    def protocol(self, num_images: int | None = None) -> dict[str, Any]:
        """Plain values that fix every number, but for the images themselves.

        Args:
            num_images: that were scored, where it was ended before all of them.
        """
        count = num_images or self.num_images
        values = {"features": self.network.protocol(), "reference": self.real.source, "num_images": count}
        if self.inception is not None:
            values["inception_score"] = {"splitting": self.splitting, "classes": 1008}
        if self.kernel is not None:
            values |= {"kernel_distance": self.kernel.protocol(count)}
            values |= {"precision_recall": self.neighbours.protocol()}
        if self.agreement is not None:
            values["class_agreement"] = LinearProbe().settings()
        return values

    def _name(self, output: str) -> str:
        return self.network.metric_name if output == FEATURES else f"s{self.network.metric_name}"


def _check_numbers(num_images: int, real: int | None) -> None:
    """`real`: images to compare with one by one; None = they are not."""
    least = least_images(real is not None)
    for count, what in ((num_images, "to be scored"), (least if real is None else real, "in the reference")):
        if count < least:
            raise UserError(f"there are {count} images {what}; these metrics need {least} or more")
