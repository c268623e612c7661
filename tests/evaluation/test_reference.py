"""Inputs and geometry of `--reference`; caching, distribution and recomputation of its statistics."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from data.test_imagenet import TRAIN, root  # noqa: F401
from helpers import assert_user_error
from metrics.builders import Means
from PIL import Image

from aim_lightning.data.images.dataset import Images
from aim_lightning.evaluation.image_sets import DecodedImages, DirectoryImages
from aim_lightning.evaluation.reference import Reference
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:FrechetDistance")


@pytest.fixture
def classes(tmp_path):
    """Two class directories of 20x30 images."""
    rng = np.random.default_rng(0)
    for name in ("blue", "red"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


@pytest.fixture
def flat(tmp_path):
    """A directory of six images without classes."""
    (tmp_path / "flat").mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i, 255 - 40 * i, i)).save(tmp_path / "flat" / f"{i}.png")
    return tmp_path / "flat"


@pytest.mark.parametrize("geometry", [{"crop": "adm_center"}, {"resize": 10, "pad": 1}, {}])
def test_class_directories_use_the_geometry_of_the_experiment(classes, geometry):
    images = Images(str(classes), str(classes), image_size=8, **geometry)
    given, own = Reference(classes, images), Reference(None, images)
    assert given.identity() == own.identity() and given.image_size() == (8, 8)
    assert torch.equal(given.images.read(range(6)), own.images.read(range(6)))


def test_an_archive_of_imagenet(root):
    images = Images(str(root), str(root), image_size=8, crop="adm_center")
    reference = Reference(root / TRAIN, images)
    assert reference.image_size() == (8, 8) and len(reference.images) == 8
    assert_user_error("needs a geometry", Reference, root / TRAIN, None)


def test_what_is_no_reference(tmp_path):
    (tmp_path / "notes.txt").touch()
    for name, words in (("notes.txt", "is not supported; give"), ("none.tar", "does not exist; give")):
        assert_user_error(words, Reference, tmp_path / name, None)


class Network(Means):
    """Counts the images that it is asked for."""

    def _features(self, images):
        self.asked = getattr(self, "asked", 0) + len(images)
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


def test_statistics_are_kept_and_follow_images_and_network(classes, network, tmp_path):
    first = statistics(classes, network, tmp_path / "cache")
    assert same(first, statistics(classes, network, tmp_path / "cache")) and network.asked == 6
    assert first.probe is not None and statistics(classes, network, tmp_path / "cache", probe=False).probe is None
    other = Network().load()
    other.weights_hash = "other"
    statistics(classes, other, tmp_path / "cache")
    assert (network.asked, other.asked) == (12, 6) and len(list((tmp_path / "cache").iterdir())) == 3


def test_an_edited_image_is_noticed_although_names_and_sizes_stay(classes, network, tmp_path):
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


def test_working_them_out_shows_signs_of_life_and_leaves_random_numbers_alone(classes, network, tmp_path, monkeypatch):
    seen, before = [], torch.get_rng_state()
    monkeypatch.setattr("aim_lightning.evaluation.throughput.beat", seen.append)
    statistics(classes, network, tmp_path / "cache", 2)
    assert len(seen) == 3 and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_damaged_statistics_are_worked_out_again(classes, network, tmp_path, damage):
    first = statistics(classes, network, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    content[-3] ^= 1
    damaged = {"cut": content[:-20].tobytes(), "flipped": content.tobytes(), "empty": b"", "text": b"{}"}[damage]
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match="damaged") as seen:
        again = statistics(classes, network, tmp_path / "cache")
    assert len(seen) == 1 and "\n" not in str(seen[0].message) and same(first, again)
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


def _rank(rank, directory, classes, caches):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2)
    network = Network().load()
    real = statistics(classes, network, caches[rank], 2)
    torch.save([getattr(network, "asked", 0), with_source(real), _newest(directory, rank)], f"{directory}/{rank}.pt")
    dist.destroy_process_group()


def _newest(directory, rank):
    """Of a directory that only the first process sees, and the mistake that only it notices."""
    told = []
    for place in (directory, "/nowhere"):
        try:
            told.append(ProcessGroup().on_rank0(lambda place=place: _listed(place, rank)))
        except UserError as error:
            told.append(str(error))
    return told


def _listed(place, rank):
    assert rank == 0
    if place == "/nowhere":
        raise UserError("nothing there")
    return f"newest of {place}"


def with_source(real):
    return real.tensors() | {"source": real.source}


def two_processes(tmp_path, classes, caches):
    arguments = (str(tmp_path), classes, [str(tmp_path / cache) for cache in caches])
    processes = [torch.multiprocessing.Process(target=_rank, args=(rank, *arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    return [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("place", ["classes", "flat"])
def test_two_processes_share_the_work(place, network, tmp_path, request):
    images = request.getfixturevalue(place)
    alone = with_source(statistics(images, network, tmp_path / "alone"))
    shares = []
    for asked, tensors, _ in two_processes(tmp_path, images, ("cache", "cache")):
        assert tensors.pop("source") == alone["source"]
        torch.testing.assert_close(tensors, {name: alone[name] for name in tensors})
        shares.append(asked)
    assert sorted(shares) == [2, 4]


def test_the_first_process_looks_for_all_of_them(classes, network, tmp_path):
    """A cache, and checkpoints, on a disk that the others do not see."""
    first = with_source(statistics(classes, network, tmp_path / "own"))
    for asked, tensors, told in two_processes(tmp_path, classes, ("own", "other")):
        assert tensors.pop("source") == first["source"]
        torch.testing.assert_close(tensors, {name: first[name] for name in tensors})
        assert asked == 0 and told == [f"newest of {tmp_path}", "nothing there"]
