"""Frozen feature networks: refused inputs, equality with published networks, ranking of damaged images."""

import io
import tarfile
from pathlib import Path

import pytest
import torch
from helpers import assert_contains, assert_user_error
from metrics.builders import inception_file  # noqa: F401
from PIL import Image
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.transforms.functional import gaussian_blur, pil_to_tensor

from aim_lightning.metrics.features import EfficientNetLite0Features, InceptionFeatures
from aim_lightning.metrics.fid import FrechetDistance
from aim_lightning.metrics.mind import MongeInceptionDistance
from aim_lightning.utils.errors import UserError

torch.set_num_threads(1)
EMBEDDED = Path(__file__).parents[2] / "data" / "fashion_mnist_mini"


def embedded_images(split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first `count` images, uint8 (count, 3, 32, 32), and their labels."""
    with tarfile.open(EMBEDDED / split / "images-000000.tar") as tar:
        files = {name: tar.extractfile(name).read() for name in tar.getnames()[: 2 * count]}
    images = [pil_to_tensor(Image.open(io.BytesIO(files[n]))) for n in files if n.endswith(".png")]
    labels = torch.tensor([int(files[n]) for n in files if n.endswith(".cls")])
    return nn.functional.pad(torch.stack(images), (2, 2, 2, 2)).expand(-1, 3, -1, -1), labels


def noisy(images: torch.Tensor, scale: float) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * scale
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def small() -> EfficientNetLite0Features:
    return EfficientNetLite0Features(size=64).load()


def test_stand_in_equals_the_package_with_its_batch_norms(small):
    from efficientnet_lite_pytorch import EfficientNet

    plain = EfficientNet.from_name("efficientnet-lite0", image_size=64).eval()
    plain.load_state_dict(torch.load(small.weights_path(), weights_only=True))
    images, _ = embedded_images("val", 40)  # more than one chunk
    x = nn.functional.interpolate(images.float(), (64, 64), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = plain.extract_features((x - 127) / 128).mean((2, 3))
    features = small(images)
    assert features.shape == (40, small.num_features) and features.dtype == torch.float32
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_distances_on_the_stand_in_rank_damage(small):
    real, _ = embedded_images("train", 120)
    images, labels = embedded_images("val", 300)
    clean, reference = small(images), small(real)
    frechet, mind = FrechetDistance(small.num_features), MongeInceptionDistance(reference)
    frechet.update_features(reference, real=True)

    def distances_of(features):
        frechet.reset(), mind.reset()
        frechet.update_features(features[:80], real=False)
        mind.update(features[:80], torch.arange(80))
        return torch.stack([frechet.compute(), mind.compute()])

    with pytest.warns(UserWarning, match="80 generated images for 1280 features"):
        base = distances_of(clean)
    blurred = [distances_of(small(gaussian_blur(images[:80], 5, sigma))) for sigma in (0.6, 1.2)]
    noised = [distances_of(small(noisy(images[:80], scale))) for scale in (8, 32)]
    missing = [distances_of(clean[labels < classes]) for classes in (6, 3)]
    for worse in (blurred, noised, missing):
        assert (base < worse[0]).all() and (worse[0] < worse[1]).all()


def test_training_and_autocast_around_it_change_nothing(small):
    images, _ = embedded_images("val", 4)
    expected = small(images)
    nn.Sequential(small).train()
    assert small.train(True) is small and not any(module.training for module in small.modules())
    with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
        features = small(images)
    assert features.dtype == torch.float32 and not features.requires_grad
    torch.testing.assert_close(features, expected, atol=0, rtol=0)
    assert small(images[:0]).shape == (0, 1280)


def test_loading_inside_inference_mode_leaves_ordinary_weights():
    with torch.inference_mode():
        network = EfficientNetLite0Features(size=32).load()
    assert not any(parameter.is_inference() for parameter in network.parameters())
    assert network.load() is network


CASES = [
    (torch.rand(2, 3, 32, 32), "uint8"),
    (torch.zeros(2, 3, 32, 32, dtype=torch.int64), "uint8"),
    (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), "(B, 3, H, W)"),
    (torch.zeros(3, 32, 32, dtype=torch.uint8), "(B, 3, H, W)"),
]


@pytest.mark.parametrize(("images", "message"), CASES)
def test_wrong_images_are_refused_in_one_line(small, images, message):
    with pytest.raises(ValueError) as error:
        small(images)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_without_load_or_in_another_dtype_it_refuses():
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    network = EfficientNetLite0Features(size=32)
    with pytest.raises(RuntimeError, match="load"):
        network(images)
    with pytest.raises(RuntimeError, match="float32"):
        network.load().to(torch.bfloat16)(images)
    assert_user_error("at least 32", EfficientNetLite0Features, size=16)


def test_protocols_of_different_networks_differ(small, inception_file):
    protocols = [small.protocol(), EfficientNetLite0Features(128).protocol()]
    protocols += [InceptionFeatures(str(inception_file), precision).protocol() for precision in ("float32", "tf32")]
    assert len({repr(sorted(p.items())) for p in protocols}) == 4
    assert all(len(p["weights_sha256"]) == 64 for p in protocols)
    assert small.metric_name == "fd_effnet_lite0"


def test_inception_of_other_weights_is_never_called_fid(inception_file, monkeypatch):
    network = InceptionFeatures(str(inception_file))
    beginning = network.weights_hash[:8]
    assert network.metric_name == f"fd_inception_{beginning}" and network.name_ending == f"_inception_{beginning}"
    monkeypatch.setattr(InceptionFeatures, "SHA256", network.weights_hash)
    assert network.metric_name == "fid" and network.name_ending == ""


def test_the_callers_tf32_is_off_inside_and_back_afterwards(small, monkeypatch):
    def settings():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    used, before = [], torch.get_float32_matmul_precision()
    monkeypatch.setattr(small, "_features", lambda images: used.append(settings()) or images)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    try:
        torch.set_float32_matmul_precision("medium")
        for precision in ("float32", "tf32"):
            monkeypatch.setattr(small, "precision", precision)
            small(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
            assert settings() == ("medium", True)
    finally:
        torch.set_float32_matmul_precision(before)
    assert used == [("highest", False), ("highest", True)]


def test_unavailable_precisions_are_refused(inception_file):
    assert_user_error("precision is 'bf16'; it must be float32 or tf32", InceptionFeatures, precision="bf16")
    with pytest.raises(UserError, match="precision is tf32, which needs an NVIDIA GPU, not cpu"):
        InceptionFeatures(str(inception_file), "tf32").load()
    assert_user_error("not meta", InceptionFeatures(str(inception_file), "tf32").load, torch.device("meta"))


def test_missing_inception_weights_give_one_line(tmp_path):
    network = InceptionFeatures(str(tmp_path / "none.pth"))  # the constructor reads nothing
    for use in (network.load, network.protocol):
        text = str(assert_user_error("toshas/torch-fidelity", use))
        command = "`aim-lightning download inception` or make weights-inception"
        assert_contains(text, [str(tmp_path / "none.pth"), command, "features.init_args.weights"])


@pytest.mark.parametrize("content", [b"", b"no weights", {"conv.weight": torch.zeros(1)}, [1]])
def test_wrong_inception_weights_give_one_line(tmp_path, content):
    path = tmp_path / "wrong.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.warns(UserWarning, match="published"), pytest.raises(UserError) as error:
        InceptionFeatures(str(path)).load()
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_inception_weights_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save(Trap(), tmp_path / "trap.pth")
    with pytest.warns(UserWarning), pytest.raises(UserError):
        InceptionFeatures(str(tmp_path / "trap.pth")).load()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("epsilon", [0.001, 0.1])
def test_inception_equals_torch_fidelity_also_in_its_batch_norms(inception_file, monkeypatch, epsilon):
    """Batch norms are folded; another epsilon changes the features of both."""
    images, _ = embedded_images("val", 2)
    batch_norm = nn.BatchNorm2d.__init__
    monkeypatch.setattr(nn.BatchNorm2d, "__init__", lambda self, size, eps: batch_norm(self, size, eps=epsilon))
    network = InceptionFeatures(str(inception_file))
    with pytest.warns(UserWarning, match="published"):
        result = network.load()(images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    plain = FeatureExtractorInceptionV3("plain", ["2048"], feature_extractor_weights_path=str(inception_file))
    expected = plain(images)[0]
    assert result.shape == (2, 2048) and float(result.std()) > 1e-3
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)
