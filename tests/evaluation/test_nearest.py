"""The nearest training images of samples: planted copies, an independent computation, ranks and the command."""

import json

import numpy as np
import pytest
from evaluation.small import call, config, refused, workspace, write_step  # noqa: F401
from metrics.builders import Means, on_ranks, random_images
from PIL import Image

from aim_lightning.data.images.dataset import Images
from aim_lightning.evaluation.image_sets import NpzImages
from aim_lightning.evaluation.nearest import NearestImages
from aim_lightning.evaluation.reference import Reference
from aim_lightning.utils.dist import ProcessGroup

pytestmark = pytest.mark.filterwarnings("ignore:FrechetDistance", "ignore:.*Fabric.*")


class Coarse:
    """A tokenizer with nine levels per channel, whose codes are the pixels."""

    def encode(self, images):
        return ((images + 1) * 4).round().long().flatten(1)

    def decode(self, codes):
        return codes.unflatten(1, (3, 8, 8)) / 4 - 1


def coarse(images: np.ndarray) -> np.ndarray:
    """Return uint8 images after the tokenizer, in numpy."""
    levels = np.rint((images / 127.5 - 1 + 1) * 4) / 4 - 1
    return np.rint((levels + 1) * 127.5).clip(0, 255).astype(np.uint8)


def write_images(directory, images):
    for number, image in enumerate(images):
        path = directory / ("a", "b", "c")[number * 3 // len(images)] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return str(directory)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Return images of a directory with 60 training and 30 held-out images, and the pixels of both."""
    root = tmp_path_factory.mktemp("splits")
    pixels = [random_images(count, count).permute(0, 2, 3, 1).numpy() for count in (60, 30)]
    pixels[0][48] = pixels[0][41]  # in the batches of another rank
    paths = [write_images(root / name, images) for name, images in zip(("train", "val"), pixels, strict=True)]
    return Images(*paths, image_size=8), *pixels


def check(splits, pairs=5):
    images = [Reference(None, splits[0], split).images for split in ("train", "val")]
    return NearestImages(*images, Means().load(), ProcessGroup(), 7, pairs)


def samples_of(path, images):
    np.savez(path / "samples.npz", arr_0=images, labels=np.arange(len(images)) % 3)
    return NpzImages(path / "samples.npz")


def features(images):
    """Return the features of `Means`, float64."""
    return images.astype(np.float64).reshape(len(images), 2, 4, 8, 3).mean((2, 3)).transpose(0, 2, 1).reshape(-1, 6)


def test_a_planted_copy_has_the_distance_zero_and_is_shown_first(splits, tmp_path):
    samples = random_images(20, 5).permute(0, 2, 3, 1).numpy().copy()
    samples[13] = coarse(splits[1][[41]])[0]
    images, nearest = samples_of(tmp_path, samples), check(splits)
    values, pairs = nearest.compare(images, Coarse())
    assert pairs[0] == {"sample": 13, "image": 41, "key": "c/041.png", "distance": 0.0}
    assert [pair["distance"] for pair in pairs] == sorted(pair["distance"] for pair in pairs) and len(pairs) == 5
    assert pairs[1]["distance"] > 0 and (values, pairs) == nearest.compare(images, Coarse())
    png = nearest.grid(images, pairs, ["red", "green", "blue"])
    (tmp_path / "nearest.png").write_bytes(png)
    shown = np.asarray(Image.open(tmp_path / "nearest.png"))[:128]
    tiles = [shown[:, start : start + 128][::16, ::16] for start in (0, 130)]
    np.testing.assert_array_equal(tiles, [samples[13], splits[1][41]])


def test_values_equal_an_independent_computation(splits, tmp_path):
    samples = random_images(20, 6).permute(0, 2, 3, 1).numpy()
    samples = np.concatenate([samples, coarse(splits[1][:5])])
    values, pairs = check(splits, 100).compare(samples_of(tmp_path, samples), Coarse())
    train, heldout = (features(coarse(images)) for images in splits[1:])
    own, others = (np.linalg.norm(x[:, None] - train, axis=2).min(1) for x in (features(samples), heldout))
    expected = np.median(np.sort(own)), np.sort(others)[14], np.mean(own < np.quantile(others, 0.01))
    names = [f"nearest_{name}_means" for name in ("samples", "heldout", "below_heldout")]
    assert list(values) == names and expected[2] >= 0.2
    assert list(values.values()) == pytest.approx(expected, rel=1e-5)
    assert [pair["distance"] for pair in pairs] == pytest.approx(np.sort(own), rel=1e-5, abs=1e-9)
    assert sorted(pair["sample"] for pair in pairs) == list(range(25))


def test_two_ranks_find_the_same_images(splits, tmp_path):
    samples = random_images(20, 5).permute(0, 2, 3, 1).numpy()
    images = samples_of(tmp_path, np.concatenate([samples, coarse(splits[1][[48]])]))
    alone = check(splits).compare(images, Coarse())
    assert alone[1][0]["image"] == 41, "of equal images the first one counts"
    assert on_ranks(lambda rank: check(splits).compare(images, Coarse()), tmp_path) == [alone, alone]


@pytest.fixture
def options(config, workspace, tmp_path):
    """Return options for a run of its own whose splits differ."""
    write_step(workspace, 7, tmp_path.name)
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), np.uint8)
    paths = {
        name: write_images(tmp_path / name, images[part])
        for name, part in (("train", slice(30)), ("val", slice(30, 50)))
    }
    return ("--run", tmp_path.name, "--images.train", paths["train"], "--images.val", paths["val"], "--num", 12)


def test_the_command_adds_values_and_an_image(config, workspace, options, tmp_path, capsys, aim_cli):
    words = map(str, ("evaluate", "--config", config, "--cache", tmp_path / "cache", *options, "--nearest", 6))
    result = aim_cli(*words)
    assert result.returncode == 0, result.stderr
    assert "nearest_below_heldout_effnet_lite0_12" in result.stdout
    run = workspace / "runs" / "small" / tmp_path.name
    (directory,) = (run / "evaluations").iterdir()
    record, results = (json.loads(file.read_text()) for file in (directory / "scores.json", run / "results.json"))
    assert Image.open(directory / "nearest.png").size == (8 * 130, 2 * 148)
    assert len(record["nearest"]) == 6 and results["metrics"]["nearest_samples_effnet_lite0_12"] > 0
    protocol = results["protocol"]["evaluate_fd_effnet_lite0_12"]["nearest"]
    assert protocol == record["protocol"]["nearest"] and protocol["heldout"]["pictures"] == 20
    # The option is part of the protocol; the stored samples are not generated again.
    assert call("evaluate", config, *options, "--nearest", 6) == 0 and "scored already" in capsys.readouterr().out
    before = (directory / "samples.npz").stat().st_mtime_ns
    assert call("evaluate", config, *options, "--nearest", 50) == 0
    assert (directory / "samples.npz").stat().st_mtime_ns == before
    assert len(json.loads((directory / "scores.json").read_text())["nearest"]) == 12


def test_unusable_options_are_refused(config, options, tmp_path, capsys):
    refuse = lambda *more: refused(capsys, "evaluate", config, *options, "--nearest", 3, *more)  # noqa: E731
    assert "images.val are the training images" in refuse("--images.val", options[3])
    assert "the training images are unknown" in refuse("--images", "null", "--reference", f"{options[3]}/a")
    assert "--nearest cannot be combined with --samples" in refuse("--samples", tmp_path)
    assert "--nearest is 0; it must be a whole number" in refuse("--nearest", 0)
