"""Comparison with torch-fidelity on the same images and the same weights file (random, in the official format)."""

import numpy as np
import pytest
import torch
import torch_fidelity
from metrics.builders import inception_file  # noqa: F401
from metrics.test_features import embedded_images, noisy
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_prc import calculate_precision_recall_full

from aim_lightning.metrics.feature_sets import KernelDistance, NeighbourMetrics
from aim_lightning.metrics.features import LOGITS, SPATIAL, InceptionFeatures
from aim_lightning.metrics.fid import frechet_distance
from aim_lightning.metrics.reference_statistics import ReferenceImagesBuilder
from aim_lightning.metrics.scores import Scores

pytestmark = pytest.mark.long
torch.set_num_threads(1)
REAL, FAKE = 32, 28


@pytest.fixture(scope="module")
def network(inception_file):
    with pytest.warns(UserWarning, match="published"):
        return InceptionFeatures(str(inception_file)).load()


@pytest.fixture(scope="module")
def image_sets():
    real, _ = embedded_images("train", REAL)
    fake, _ = embedded_images("val", FAKE)
    return real, noisy(fake, 60)


@pytest.fixture(scope="module")
def outputs(network, image_sets):
    """Compute the outputs for both image sets once: Inception takes a second for ten images here."""
    return [network.outputs(images) for images in image_sets]


@pytest.fixture(scope="module")
def published(inception_file, image_sets, tmp_path_factory):
    """Return the values of torch-fidelity from files on disk, with its feature extractor and its arithmetic."""
    directories = []
    for images in image_sets:
        directories.append(tmp_path_factory.mktemp("images"))
        for i, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(directories[-1] / f"{i:04d}.png")
    inputs = {"input1": str(directories[1]), "input2": str(directories[0])}
    metrics = {"fid": True, "isc": True, "kid": True, "kid_subset_size": 20, "kid_subsets": 20}
    machine = {"cuda": False, "cache": False, "save_cpu_ram": True, "verbose": False}
    path = str(inception_file)
    return torch_fidelity.calculate_metrics(**inputs, **metrics, **machine, feature_extractor_weights_path=path)


def scored(network, outputs, splitting="adm", order=None, batch=7):
    """Score with the classes that `evaluate` uses, on precomputed features."""
    real, fake = outputs
    builder = ReferenceImagesBuilder(network, REAL)
    builder.network = Replay(network, real)
    builder.add(torch.zeros(REAL, 3, 8, 8), None, torch.arange(REAL))
    statistics = builder.finish({})
    scores = Scores(network, statistics, FAKE, splitting)
    scores.kernel = KernelDistance(statistics.features, subsets=20, subset_size=20)
    order = torch.arange(FAKE) if order is None else order
    for indices in order.split(batch):
        scores.__dict__["network"] = Replay(network, {name: value[indices] for name, value in fake.items()})
        scores.update(torch.zeros(len(indices), 3, 8, 8), indices)
    return scores.compute()


class Replay:
    """A network that returns precomputed outputs."""

    def __init__(self, network, outputs):
        self._outputs, self._network = outputs, network

    def outputs(self, images):
        return self._outputs

    def __getattr__(self, name):
        return getattr(self._network, name)


@pytest.mark.filterwarnings("ignore:FrechetDistance")
def test_fid_is_kid_equal_torch_fidelity(network, outputs, published, monkeypatch):
    random, end = scored(network, outputs, "torch_fidelity"), network.name_ending
    bases = ("fd", "sfd", "is", "is_std", "kd", "precision", "recall", "density", "coverage", "mind")
    assert set(random) == {f"{base}{end}" for base in bases}  # of random weights: nothing is called as in papers
    monkeypatch.setattr(InceptionFeatures, "SHA256", network.weights_hash)
    values = scored(network, outputs, "torch_fidelity")
    assert values["fid"] == pytest.approx(published["frechet_inception_distance"], rel=1e-4)
    assert values["is"] == pytest.approx(published["inception_score_mean"], rel=1e-4)
    assert values["is_std"] == pytest.approx(published["inception_score_std"], rel=1e-3)
    assert values["kid"] == pytest.approx(published["kernel_inception_distance_mean"], rel=1e-4)
    assert values["kid_std"] == pytest.approx(published["kernel_inception_distance_std"], rel=1e-3)
    neighbours = {"precision", "recall", "density", "coverage"}
    assert set(values) == {"fid", "sfid", "is", "is_std", "kid", "kid_std", "mind_inception"} | neighbours
    assert sorted(values.values()) == pytest.approx(sorted({**random, "": values["kid_std"]}.values()))


@pytest.mark.filterwarnings("ignore:FrechetDistance")
def test_any_batch_size_and_order(network, outputs):
    one = scored(network, outputs, batch=FAKE)
    other = scored(network, outputs, order=torch.randperm(FAKE, generator=torch.Generator().manual_seed(0)), batch=3)
    assert one == pytest.approx(other, rel=1e-6)


def test_precision_and_recall_equal_torch_fidelity_and_brute_force(outputs):
    real, fake = (output["features"] for output in outputs)
    metric = NeighbourMetrics(real, k=3)
    for rows in torch.arange(len(fake)).split(9):
        metric.update(fake[rows], rows)
    values = {name: float(value) for name, value in metric.compute().items()}
    assert (values["precision"], values["recall"]) == pytest.approx(calculate_precision_recall_full(fake, real, 3))

    def inside(points, centres):
        radii = [sorted(float((c - o).norm()) for o in centres)[3] for c in centres]
        hits = [any(float((p - c).norm()) <= r for c, r in zip(centres, radii, strict=True)) for p in points]
        return sum(hits) / len(hits)

    real, fake = real.double(), fake.double()
    expected = {"precision": inside(fake, real), "recall": inside(real, fake)}
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert 0 < values["recall"] < 1


def test_spatial_features_and_logits_are_the_published_ones(network, inception_file, image_sets):
    """sFID: the tensor mixed_6/conv:0 (after ReLU), its first 7 channels, positions before channels as in NHWC."""
    plain = FeatureExtractorInceptionV3("x", ["logits_unbiased"], feature_extractor_weights_path=str(inception_file))
    inner = {}
    plain.Mixed_6c.register_forward_hook(lambda module, inputs, result: inner.update(x=result))
    logits = plain(image_sets[0][:2])[0]
    branch = plain.Mixed_6d.branch1x1
    nhwc = torch.relu(branch.bn(branch.conv(inner["x"]))).detach().numpy().transpose(0, 2, 3, 1)[..., :7]
    values = network.outputs(image_sets[0][:2])
    np.testing.assert_allclose(values[SPATIAL].numpy(), nhwc.reshape(2, -1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values[LOGITS], logits, rtol=1e-4, atol=1e-5)
    assert values[SPATIAL].shape == (2, 2023)


@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_sfid_by_the_published_definition(network, outputs):
    from scipy.linalg import sqrtm

    real, fake = (output[SPATIAL][:20, :15].double().numpy() for output in outputs)  # full rank
    stats = [(x.mean(0), np.cov(x, rowvar=False)) for x in (real, fake)]
    product = sqrtm(stats[0][1] @ stats[1][1]).real
    difference = stats[0][0] - stats[1][0]
    expected = difference @ difference + np.trace(stats[0][1]) + np.trace(stats[1][1]) - 2 * np.trace(product)
    values = frechet_distance(*(torch.from_numpy(part) for pair in stats for part in pair))
    assert float(values) == pytest.approx(expected, rel=1e-4)
