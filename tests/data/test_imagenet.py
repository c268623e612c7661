"""ImageNet's archives in the form in which they are distributed, in miniature."""

import hashlib
import io
import tarfile

import numpy as np
import pytest
from data.builders import encode, noise, tar_of
from helpers import assert_user_error
from scipy.io import savemat
from torchvision.datasets import ImageNet, imagenet
from tqdm import tqdm

from aim_lightning.data.images.decode import UnreadableImage
from aim_lightning.data.images.directory import DirectorySource, open_source
from aim_lightning.data.images.imagenet import DEVKIT, ImageNetArchive

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
# In the devkit's own order, which is not that of the WordNet ids; the last one is no leaf.
SYNSETS = [
    (1, "n02119789", "kit fox, Vulpes macrotis", 0),
    (2, "n01440764", "tench, Tinca tinca", 0),
    (3, "n03126707", "crane", 0),
    (4, "n02012849", "crane", 0),
    (5, "n00001740", "entity", 4),
]
LEAVES = sorted(wnid for _, wnid, _, children in SYNSETS if not children)
VAL_IDS = [3, 1, 2, 4, 1, 2]  # ILSVRC2012 id of each validation image


def jpeg(seed: int) -> bytes:
    return encode(noise(seed, (10, 12)), "JPEG")


def class_tar(wnid: str) -> bytes:
    return tar_of({f"{wnid}_{i}.JPEG": jpeg(int(wnid[1:]) + i) for i in (10, 2)})


@pytest.fixture
def root(tmp_path, monkeypatch):
    """All three archives; torchvision is given their checksums."""
    meta, columns = io.BytesIO(), ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")
    column_types = [(name, "O") for name in columns]
    rows = [(number, wnid, words, "-", children) for number, wnid, words, children in SYNSETS]
    savemat(meta, {"synsets": np.array(rows, dtype=column_types).reshape(-1, 1)})
    directory = "ILSVRC2012_devkit_t12/data"
    truth = "".join(f"{number}\n" for number in VAL_IDS).encode()
    kit = {f"{directory}/meta.mat": meta.getvalue(), f"{directory}/ILSVRC2012_validation_ground_truth.txt": truth}
    archives = {
        DEVKIT: tar_of(kit, "w:gz"),
        TRAIN: tar_of({f"{wnid}.tar": class_tar(wnid) for wnid in LEAVES}),
        VAL: tar_of({f"ILSVRC2012_val_{i + 1:08d}.JPEG": jpeg(i) for i in (4, 0, 1, 2, 5, 3)}),
    }
    for name, content in archives.items():
        (tmp_path / name).write_bytes(content)
    named = zip(("devkit", "train", "val"), archives.items(), strict=True)
    sums = {kind: (name, hashlib.md5(content).hexdigest()) for kind, (name, content) in named}
    monkeypatch.setattr(imagenet, "ARCHIVE_META", sums)
    return tmp_path


@pytest.mark.parametrize(("split", "archive"), [("train", TRAIN), ("val", VAL)])
def test_classes_rows_and_images_are_torchvisions(root, split, archive):
    source = open_source(root / archive)
    assert isinstance(source, ImageNetArchive) and not (root / imagenet.META_FILE).exists()
    expected = ImageNet(root, split)  # unpacks the archives
    assert source.class_names == [", ".join(names) for names in expected.classes]
    assert source.class_names == ["tench, Tinca tinca", "crane", "kit fox, Vulpes macrotis", "crane"]
    assert source.labels.tolist() == expected.targets
    assert [source.key(row) for row in range(len(source))] == [path.split(f"/{split}/")[1] for path, _ in expected.imgs]
    tree = DirectorySource(root / split)
    assert [tree.key(row) for row in range(len(tree))] == [source.key(row) for row in range(len(source))]
    for image, (expected_image, _) in zip(source, expected, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(expected_image))
    assert len(source) == {"train": 8, "val": 6}[split]


def test_fingerprint_depends_on_content_not_on_path(root, tmp_path_factory):
    before = ImageNetArchive(root / TRAIN).fingerprint
    moved = root.rename(tmp_path_factory.mktemp("elsewhere") / "moved")
    assert ImageNetArchive(moved / TRAIN).fingerprint == before != ImageNetArchive(moved / VAL).fingerprint


def test_incomplete_or_foreign_archives_are_named(root):
    full = {f"{wnid}.tar": class_tar(wnid) for wnid in LEAVES}
    images = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": jpeg(i) for i in range(6)}
    for name, members, match in (
        (TRAIN, dict([*full.items()][1:]), "img_train.tar lacks n01440764 .3 classes of 4"),
        (TRAIN, full | {"n99999999.tar": class_tar("n99999999")}, "a class unknown to the devkit, n99999999"),
        (TRAIN, full | {"n01440764.tar": class_tar("n03126707")}, "n01440764.tar holds n03126707_10.JPEG"),
        (VAL, dict([*images.items()][:5]), "holds 5 images, the devkit lists 6"),
        (VAL, images | {"ILSVRC2012_val_00000007.JPEG": jpeg(7)}, "val_00000007.JPEG, which is not one of its 6"),
        (VAL, {"cat.jpg": jpeg(0)}, "starts with 'cat.jpg': it is neither"),
    ):
        (root / name).write_bytes(tar_of(members))
        assert_user_error(match, open_source, root / name)
    for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE):
        entry = tarfile.TarInfo("n99999999.tar")
        entry.type, entry.linkname = kind, "n01440764.tar"
        (root / TRAIN).write_bytes(tar_of(full))
        with tarfile.open(root / TRAIN, "a") as tar:
            tar.addfile(entry)
        assert_user_error("n99999999.tar, which is not the archive of a class", open_source, root / TRAIN)
    content = tar_of(full)
    (root / TRAIN).write_bytes(content[: len(content) // 2])
    assert_user_error("img_train.tar.* is truncated or damaged", open_source, root / TRAIN)


def test_devkit_missing_or_changed(root):
    (root / DEVKIT).write_bytes((root / DEVKIT).read_bytes() + b"x")
    assert_user_error("devkit_t12.tar.gz is not ImageNet's development kit .its MD5 differs", open_source, root / VAL)
    (root / DEVKIT).unlink()
    assert_user_error("devkit_t12.tar.gz does not exist", open_source, root / VAL)


def test_the_directory_of_the_archives_is_no_image_set(root):
    assert_user_error("holds archives of ImageNet; name one of them itself: .*img_train.tar", open_source, root)


def test_a_damaged_image_is_named(root):
    content = (root / VAL).read_bytes()
    with tarfile.open(root / VAL) as tar:
        member = tar.getmember("ILSVRC2012_val_00000002.JPEG")
    (root / VAL).write_bytes(content[: member.offset_data] + bytes(200) + content[member.offset_data + 200 :])
    source = ImageNetArchive(root / VAL)
    row = [source.key(r) for r in range(6)].index("n02119789/ILSVRC2012_val_00000002.JPEG")
    with pytest.raises(UnreadableImage, match=r"img_val.tar, key n02119789/ILSVRC2012_val_00000002.JPEG is not a"):
        source[row]


@pytest.mark.parametrize("name", [TRAIN, VAL])
def test_opening_an_archive_shows_how_far_it_is(root, monkeypatch, name):
    bars = []

    class Bar(tqdm):
        def __init__(self, **options):
            super().__init__(**{**options, "disable": False, "file": io.StringIO()})
            bars.append((self, options["disable"]))

    monkeypatch.setattr("aim_lightning.data.images.imagenet.tqdm", Bar)
    ImageNetArchive(root / name)
    ((bar, disabled),) = bars
    size = (root / name).stat().st_size
    assert bar.total == size and size / 2 < bar.n <= size and disabled is None  # None: on terminals alone
