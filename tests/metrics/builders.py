"""Small feature networks, random images, Inception weights in the published format, and forked ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from aim_lightning.metrics.features import LOGITS, FeatureNetwork
from aim_lightning.metrics.reference_statistics import ReferenceImages, ReferenceImagesBuilder
from aim_lightning.metrics.scores import Scores

FEATURES = 6


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory) -> Path:
    """Write random weights that torch-fidelity reads as Inception's, with batch norms that change their input."""
    torch.manual_seed(0)
    with mock.patch("torch.load"), mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path="unread")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # the default shrinks activations to nothing in 50 layers
        if isinstance(module, nn.BatchNorm2d):
            # Small variances, so that epsilon (0.001) counts; the scale keeps activations of the same size.
            nn.init.uniform_(module.running_var, 0.005, 0.02)
            nn.init.constant_(module.weight, 0.11)
            nn.init.normal_(module.running_mean, std=0.02)
            nn.init.normal_(module.bias, std=0.02)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


class Means(FeatureNetwork):
    """Six means of stripes of the image: a network without weights file."""

    name, metric_name, num_features, input_size = "means", "fd_means", FEATURES, 8
    recipe = {"stripes": "two rows a channel"}  # noqa: RUF012
    weights_hash = "none"

    def _build(self):
        return nn.Linear(1, 1)

    def _features(self, images):
        return images.float().unflatten(2, (2, -1)).mean((3, 4)).flatten(1)


class Complete(Means):
    """A fast network with all of Inception's outputs."""

    metric_name = "fid"

    def output_sizes(self):
        return {"features": FEATURES, "spatial": 3, LOGITS: FEATURES}

    def _outputs(self, images):
        features = self._features(images)
        return {"features": features, "spatial": features[:, :3], LOGITS: features / 64}


def random_images(count: int, seed: int = 0, high: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, high, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)


def reference_of(network: FeatureNetwork, images: torch.Tensor, labels=None, rows=None) -> ReferenceImages:
    """Return the statistics of images, or of this rank's `rows` of them."""
    builder = ReferenceImagesBuilder(network, len(images), 0 if labels is None else int(labels.max()) + 1)
    for part in (torch.arange(len(images)) if rows is None else rows).split(16):
        builder.add(images[part], None if labels is None else labels[part], part)
    return builder.finish({"kind": "test"})


def score(network: FeatureNetwork, real: ReferenceImages, images: torch.Tensor, share=slice(None), batch=9, **options):
    """Return every value of images, of which this rank adds a share; image k is of class k % 2."""
    scores = Scores(network, real, len(images), **options)
    for rows in torch.arange(len(images))[share].split(batch):
        scores.update(images[rows], rows, rows % 2)
    return scores.compute()


def on_ranks(work: Callable[[int], Any], directory: Path, world: int = 2) -> list[Any]:
    """Call `work` with the rank in forked gloo ranks, which spares imports of torch, and return the results."""
    context = torch.multiprocessing.get_context("fork")
    processes = [context.Process(target=_rank, args=(work, rank, directory, world)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * world
    return [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _rank(work: Callable[[int], Any], rank: int, directory: Path, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world)
    torch.save(work(rank), directory / f"{rank}.pt")
    dist.destroy_process_group()
