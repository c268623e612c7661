"""Inputs and geometry of `--reference`; caching, distribution and recomputation of its statistics."""

import numpy as np
import pytest
import torch
from data.test_imagenet import TRAIN, root  # noqa: F401
from helpers import assert_user_error
from metrics.builders import Means, on_ranks
from PIL import Image

from aim_lightning.data.images.dataset import Images
from aim_lightning.evaluation.image_sets import DecodedImages, DirectoryImages
from aim_lightning.evaluation.reference import Reference
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:FrechetDistance")


@pytest.fixture
def classes(tmp_path):
    """Create two class directories of 20x30 images."""
    rng = np.random.default_rng(0)
    for path in (tmp_path / "set" / name / f"{i}.png" for name in ("blue", "red") for i in range(3)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(path)
    return tmp_path / "set"


@pytest.fixture
def flat(tmp_path):
    """Create a directory of six images without classes."""
    (tmp_path / "flat").mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i, 255 - 40 * i, i)).save(tmp_path / "flat" / f"{i}.png")
    return tmp_path / "flat"


@pytest.mark.parametrize("geometry", [{"crop": "adm_center"}, {"resize": 10, "pad": 1}, {}])
def test_class_directories_use_the_geometry_of_the_experiment(classes, geometry):
    images = Images(str(classes), str(classes), image_size=8, **geometry)
    by_path, default = Reference(classes, images), Reference(None, images)
    assert by_path.identity() == default.identity() and by_path.image_size() == (8, 8)
    assert torch.equal(by_path.images.read(range(6)), default.images.read(range(6)))


def test_an_archive_of_imagenet(root):
    images = Images(str(root), str(root), image_size=8, crop="adm_center")
    reference = Reference(root / TRAIN, images)
    assert reference.image_size() == (8, 8) and len(reference.images) == 8
    assert_user_error("needs a geometry", Reference, root / TRAIN, None)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert_user_error("is not supported; give", Reference, tmp_path / "notes.txt", None)
    assert_user_error("does not exist; give", Reference, tmp_path / "none.tar", None)


class Network(Means):
    """Counts the images whose features it computes."""

    asked = 0

    def _features(self, images):
        self.asked += len(images)
        return super()._features(images)


@pytest.fixture
def network():
    return Network().load()


def statistics(classes, network, cache, batch_size=250, **more):
    images = Images(str(classes), str(classes), image_size=8, resize=8)
    reference = Reference(classes, None) if list(classes.glob("*.png")) else Reference(None, images)
    return reference.statistics(network, ProcessGroup(), cache, batch_size, **more)


def same(one, other):
    return all(torch.equal(value, other.tensors()[name]) for name, value in one.tensors().items())


def test_statistics_are_cached_by_images_and_network(classes, network, tmp_path):
    first = statistics(classes, network, tmp_path / "cache")
    assert same(first, statistics(classes, network, tmp_path / "cache")) and network.asked == 6
    assert first.probe is not None and statistics(classes, network, tmp_path / "cache", probe=False).probe is None
    other = Network().load()
    other.weights_hash = "other"
    statistics(classes, other, tmp_path / "cache")
    assert (network.asked, other.asked) == (12, 6) and len(list((tmp_path / "cache").iterdir())) == 3


def test_an_edited_image_of_the_same_name_and_size_is_noticed(classes, network, tmp_path):
    path = classes / "red" / "0.bmp"
    Image.new("RGB", (20, 30), "red").save(path)
    before = statistics(classes, network, tmp_path / "cache")
    Image.new("RGB", (20, 30), "blue").save(path)
    after = statistics(classes, network, tmp_path / "cache")
    assert not torch.equal(before.features, after.features)
    assert before.source.pop("pixels_sha256") != after.source.pop("pixels_sha256")
    assert before.source == after.source and "sha256" not in after.source  # a fingerprint is no hash of content
    assert len(statistics(classes, network, tmp_path / "cache").source["pixels_sha256"]) == 64, "kept in the cache"


def test_statistics_do_not_depend_on_batches(classes, network, tmp_path):
    one, two = (statistics(classes, network, tmp_path / str(size), size) for size in (250, 4))
    assert torch.equal(one.features, two.features)
    torch.testing.assert_close(one.gaussians["features"], two.gaussians["features"])
    torch.testing.assert_close(one.probe, two.probe)


def test_the_watchdog_gets_heartbeats_and_random_numbers_stay(classes, network, tmp_path, monkeypatch):
    beats, before = [], torch.get_rng_state()
    monkeypatch.setattr("aim_lightning.evaluation.throughput.beat", beats.append)
    statistics(classes, network, tmp_path / "cache", 2)
    assert len(beats) == 3 and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_damaged_statistics_are_computed_again(classes, network, tmp_path, damage):
    first = statistics(classes, network, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    content[-3] ^= 1
    damaged = {"cut": content[:-20].tobytes(), "flipped": content.tobytes(), "empty": b"", "text": b"{}"}[damage]
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match="damaged") as warnings:
        again = statistics(classes, network, tmp_path / "cache")
    assert len(warnings) == 1 and "\n" not in str(warnings[0].message) and same(first, again)
    assert same(first, statistics(classes, network, tmp_path / "cache")) and network.asked == 12


def test_statistics_are_used_although_the_cache_cannot_be_written(classes, network, tmp_path, file_limit):
    file_limit(0)
    with pytest.warns(UserWarning, match=r"safetensors cannot be written \(.*; the next evaluation computes it again"):
        first = statistics(classes, network, tmp_path / "cache")
    file_limit(None)
    assert not list((tmp_path / "cache").iterdir())
    assert same(first, statistics(classes, network, tmp_path / "cache")) and network.asked == 12


def test_a_flat_directory_is_identified_by_the_content_of_its_files(flat, network, tmp_path):
    first = statistics(flat, network, tmp_path / "cache")
    assert first.source == DirectoryImages(flat).identity()
    assert same(first, statistics(flat, network, tmp_path / "cache")) and network.asked == 6
    Image.new("RGB", (8, 8), "blue").save(flat / "0.png")
    assert statistics(flat, network, tmp_path / "cache").source["sha256"] != first.source["sha256"]
    assert network.asked == 12


@pytest.mark.parametrize("name", ["classes", "flat"])
def test_images_edited_while_they_are_read_are_an_error(name, network, tmp_path, monkeypatch, request):
    """The modification times are taken before the first image is read, and compared afterwards."""
    images, shard = request.getfixturevalue(name), DecodedImages.shard
    path = images / ("0.png" if name == "flat" else "red/0.png")

    def shard_and_edit(image_set, *arguments):
        batches = list(shard(image_set, *arguments))
        Image.new("RGB", (8, 8), "red").save(path)
        return iter(batches)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="changed while they were read"):
        patch.setattr(DecodedImages, "shard", shard_and_edit)
        statistics(images, network, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))
    statistics(images, network, tmp_path / "cache")
    assert network.asked == 12


def test_a_failing_pass_leaves_no_file(classes, network, tmp_path):
    (classes / "red" / "2.png").write_bytes(b"no image")
    assert_user_error(r"red/2.png", statistics, classes, network, tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


def on_two_ranks(tmp_path, images, caches):
    """Compute the statistics on two ranks with a cache each, and listings that rank 0 makes for both."""

    def listing(directory, rank):
        assert rank == 0
        if directory == "/nowhere":
            raise UserError("no such directory")
        return f"newest of {directory}"

    def work(rank):
        network = Network().load()
        real = statistics(images, network, tmp_path / caches[rank], 2)
        results = [ProcessGroup().on_rank0(lambda: listing("runs", rank))]
        results.append(str(assert_user_error("no such", ProcessGroup().on_rank0, lambda: listing("/nowhere", rank))))
        return network.asked, real.tensors(), real.source, results

    return on_ranks(work, tmp_path)


@pytest.mark.parametrize("name", ["classes", "flat"])
def test_two_processes_share_the_work(name, network, tmp_path, request):
    images = request.getfixturevalue(name)
    alone = statistics(images, network, tmp_path / "alone")
    results = on_two_ranks(tmp_path, images, ("cache", "cache"))
    for _, tensors, source, _ in results:
        assert source == alone.source
        torch.testing.assert_close(tensors, alone.tensors())
    assert sorted(asked for asked, *_ in results) == [2, 4]


def test_rank_0_reads_the_disk_for_all_ranks(classes, network, tmp_path):
    """A cache, and checkpoints, on a disk that the others do not see."""
    first = statistics(classes, network, tmp_path / "first")
    for asked, tensors, source, results in on_two_ranks(tmp_path, classes, ("first", "other")):
        assert source == first.source and asked == 0
        torch.testing.assert_close(tensors, first.tensors())
        assert results == ["newest of runs", "no such directory"]
