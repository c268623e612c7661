"""LPIPS with weights from a file: its definition, its gradients, missing and wrong files."""

from pathlib import Path

import pytest
import torch
import torchmetrics
import torchvision
from helpers import assert_user_error, write_random_vgg
from torch.nn import functional as F

from aim_lightning.metrics.lpips import PerceptualDistance

pytestmark = pytest.mark.filterwarnings("ignore:.*compares with no other")
LAYERS = (3, 8, 15, 22, 29)  # outputs of VGG16's features that LPIPS compares


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    return write_random_vgg(tmp_path_factory.mktemp("vgg") / "vgg16.pth")


@pytest.fixture(scope="module")
def lpips(vgg_file):
    original = torchvision.models.vgg16
    with pytest.warns(UserWarning, match="compares with no other"):
        distance = PerceptualDistance(vgg_file).load()
    assert torchvision.models.vgg16 is original and distance.load() is distance
    return distance


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2)]


def by_definition(vgg_file, one, other):
    """Zhang et al., equation 1, with torchmetrics' linear heads."""
    weights = torch.load(vgg_file)
    directory = Path(torchmetrics.functional.image.__file__).parent / "lpips_models"
    heads = list(torch.load(directory / "vgg.pth", map_location="cpu").values())
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    with torch.device("meta"):
        features = torchvision.models.vgg16(weights=None).features
    features.load_state_dict({k.removeprefix("features."): v for k, v in weights.items()}, assign=True)
    both = [(x - shift[:, None, None]) / scale[:, None, None] for x in (one, other)]
    total = 0
    for i, layer in enumerate(features[:30]):
        layer.inplace = False
        both = [layer(x) for x in both]
        if i in LAYERS:
            units = [F.normalize(x, dim=1) for x in both]
            total = total + F.conv2d((units[0] - units[1]).square(), heads[LAYERS.index(i)]).mean((2, 3))
    return total.flatten()


def test_it_is_lpips(lpips, vgg_file, images):
    with torch.no_grad():
        result, expected = lpips(*images), by_definition(vgg_file, *images)
    assert result.shape == (2,) and torch.allclose(result, expected, rtol=1e-4)
    assert torch.equal(lpips(images[0], images[0]), torch.zeros(2))


def test_gradients_reach_the_images_and_nothing_else(lpips, images):
    reconstruction = (images[0] * 1.5).requires_grad_()  # it may leave [-1, 1]
    lpips(reconstruction, images[1]).mean().backward()
    assert reconstruction.grad.abs().sum() > 0
    assert not isinstance(lpips, torch.nn.Module)
    assert all(p.grad is None and not p.requires_grad for p in lpips.network.parameters())


def test_a_missing_or_foreign_file_is_one_line(tmp_path, vgg_file):
    missing = PerceptualDistance(tmp_path / "vgg16.pth")
    assert_user_error("does not exist; run `aim-lightning download vgg`", missing.load)
    short = tmp_path / "short.pth"
    short.write_bytes(vgg_file.read_bytes()[:100_000])
    weights = torch.load(vgg_file)
    for name, content in (("foreign", {"features.0.weight": torch.ones(1)}), ("more", {**weights, "head": weights})):
        torch.save(content, tmp_path / f"{name}.pth")
        assert_user_error("other weights than", PerceptualDistance(tmp_path / f"{name}.pth").load)
    assert_user_error("damaged", PerceptualDistance(short).load)
