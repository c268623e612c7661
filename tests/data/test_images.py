"""Image sources, shards, transforms, pixel conversions and the embedded Fashion-MNIST."""

import errno
import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data.builders import encode, noise, save_noise, tar_of
from helpers import assert_contains, assert_user_error
from PIL import Image

from aim_lightning.data.images import decode, fashion_mnist
from aim_lightning.data.images.dataset import Images
from aim_lightning.data.images.decode import UnreadableImage, background_rgb, composite, to_8_bit
from aim_lightning.data.images.directory import DirectorySource, ShardSource, open_source
from aim_lightning.data.images.script import run_script
from aim_lightning.data.images.shard_writer import write_image_shards
from aim_lightning.data.images.transforms import ImageTransform
from aim_lightning.evaluation.image_sets import ExperimentImages, open_images
from aim_lightning.utils.files import read_json, sha256_file, write_json
from aim_lightning.utils.pixels import to_uint8, to_unit_range

MINI = Path(__file__).parents[2] / "data" / "fashion_mnist_mini"
IDX = Path(os.environ.get("FASHION_MNIST_DIR", fashion_mnist.DEBIAN_DIRECTORY))
NAMES = ["cat", "dog", "owl"]


def reopen(image: Image.Image, form: str = "PNG", **options) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, form, **options)))


def has_noise(source, row: int, seed: int) -> bool:
    """Return True if the image of a row is `noise(seed)`."""
    return source[row].tobytes() == noise(seed).tobytes()


def keys(source) -> list[str]:
    return [source.key(row) for row in range(len(source))]


def records(rows: int = 7) -> list[tuple[bytes, str, int, str]]:
    labels = sorted(row % len(NAMES) for row in range(rows))
    return [(encode(noise(row)), "png", label, f"p{row:02d}") for row, label in enumerate(labels)]


@pytest.fixture
def shards(tmp_path) -> Path:
    """7 images, 3 a shard."""
    write_image_shards(records(), tmp_path / "shards", NAMES, rows_per_shard=3)
    return tmp_path / "shards"


@pytest.fixture
def tree(tmp_path) -> Path:
    """The same images as class directories."""
    for row, (_, _, label, key) in enumerate(records()):
        save_noise(tmp_path / "tree" / NAMES[label] / f"{key}.png", row)
    return tmp_path / "tree"


# --- decode to 8 bits, composite on a background


def to_rgb(image, background="white"):
    image = to_8_bit(image)
    return composite(image, background_rgb(background)) if image.mode == "RGBA" else image


MODES = [
    ("1", 1, (255, 255, 255)),
    ("L", 77, (77, 77, 77)),
    ("LA", (77, 255), (77, 77, 77)),
    ("LA", (77, 0), (255, 255, 255)),
    ("La", (0, 0), (255, 255, 255)),
    ("RGB", (10, 20, 30), (10, 20, 30)),
    ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
    ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
    ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
    ("RGBX", (10, 20, 30, 0), (10, 20, 30)),
    ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ("YCbCr", (128, 128, 128), (128, 128, 128)),
    ("HSV", (0, 255, 255), (255, 0, 0)),
    ("LAB", (255, 128, 128), (255, 255, 255)),
    ("I;16", 65535, (255, 255, 255)),
    ("I;16", 257 * 40, (40, 40, 40)),
    ("I;16B", 257 * 40, (40, 40, 40)),
    ("I", 257 * 40, (40, 40, 40)),
    ("I", 40, (40, 40, 40)),
    ("I", 2**30, (255, 255, 255)),
    ("F", 0.5, (128, 128, 128)),
    ("F", 40.0, (40, 40, 40)),
    ("F", float("nan"), (0, 0, 0)),
]


TRANSPARENT_KEYS = [("L", 40), ("RGB", (1, 2, 3)), ("I;16", 9000)]  # PNG: the colour that is transparent


@pytest.mark.parametrize(("mode", "color", "expected"), MODES)
def test_every_mode_becomes_rgb(mode, color, expected):
    rgb = to_rgb(Image.new(mode, (3, 2), color))
    assert (rgb.mode, rgb.size) == ("RGB", (3, 2))
    assert rgb.getpixel((1, 1)) == pytest.approx(expected, abs=1 if mode == "LAB" else 0)


@pytest.mark.parametrize(("background", "expected"), [("#102030", (16, 32, 48)), ("lime", (0, 255, 0))])
def test_transparent_pixels_of_every_mode_show_the_background(background, expected):
    palette = Image.new("P", (2, 2))
    palette.putpalette([10, 20, 30])
    clear = [Image.new("LA", (2, 2), (77, 0)), Image.new("La", (2, 2), 0), Image.new("RGBA", (2, 2), (1, 2, 3, 0))]
    clear += [Image.new("RGBa", (2, 2)), reopen(palette, transparency=0), reopen(palette, transparency=b"\0")]
    clear += [reopen(Image.new(mode, (2, 2), key), transparency=key) for mode, key in TRANSPARENT_KEYS]
    assert [to_rgb(image, background).getpixel((0, 0)) for image in clear] == [expected] * len(clear)
    half = to_rgb(Image.new("LA", (1, 1), (255, 51)), background).getpixel((0, 0))
    assert half == pytest.approx([value + (255 - value) * 0.2 for value in expected], abs=1)


@pytest.mark.parametrize("color", ["wite", "#12", "#11223344", "255, 0, 0", ""])
def test_an_unknown_background_is_refused_before_the_images_are_listed(color):
    assert_user_error("images.background is .*; use a colour name", Images("a", "b", background=color).open, "train")


def test_the_background_is_part_of_the_fingerprint_and_white_is_the_previous_one(tree):
    """Token shards and cached statistics of versions without this option stay valid."""
    sets = {
        color: Images(str(tree), str(tree), image_size=7, background=color).open("train")
        for color in ("white", "#FFFFFF", "black", "#000")
    }
    fingerprints = {color: images.fingerprint for color, images in sets.items()}
    assert fingerprints["white"] == fingerprints["#FFFFFF"] and fingerprints["black"] == fingerprints["#000"]
    assert fingerprints["black"] == fingerprints["white"] + "/#000000"
    geometries = {color: ExperimentImages(images, "tree").identity()["geometry"] for color, images in sets.items()}
    assert geometries["white"] == repr(sets["white"].transform)
    assert geometries["black"] == geometries["white"] + "/#000000"


def test_an_image_set_composites_on_its_background_and_counts(tree):
    Image.new("RGBA", (9, 7), (0, 0, 0, 0)).save(tree / "cat" / "p00.png")
    Image.new("RGBA", (9, 7), (5, 6, 7, 255)).save(tree / "cat" / "p01.png")  # opaque in spite of its alpha channel
    images = Images(str(tree), str(tree), image_size=7, background="#0a141e").open("train")
    pixels_BCHW, _ = images.batch([0, 1])
    assert pixels_BCHW[:, :, 0, 0].tolist() == [[10, 20, 30], [5, 6, 7]] and images.source.transparent == 1


def test_integer_grey_with_negative_values_is_stretched_over_its_range():
    image = Image.fromarray(np.array([[-100, 0, 100]], dtype=np.int32))
    assert [to_rgb(image).getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert [to_rgb(reopen(image)).getpixel((x, 0)) for x in range(2)] == [(10, 20, 30), (200, 100, 50)]
    clear = to_rgb(reopen(image, transparency=0))
    assert [clear.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (200, 100, 50)]
    assert to_rgb(image.convert("PA")).getpixel((1, 0)) == (200, 100, 50)


@pytest.mark.parametrize(("mode", "color"), TRANSPARENT_KEYS)
def test_transparent_color_of_a_png_becomes_white(mode, color):
    assert to_rgb(reopen(Image.new(mode, (2, 2), color), transparency=color)).getpixel((0, 0)) == (255, 255, 255)


def test_16_bit_png_keeps_its_range():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    assert np.array_equal(np.asarray(to_rgb(reopen(Image.fromarray(ramp))))[0, :, 0], np.arange(256))


def test_exif_orientation_is_applied():
    image, exif = noise(0), Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    turned = to_rgb(reopen(image, exif=exif))
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(image), -1))


def test_an_image_with_damaged_exif_is_read():
    jpeg = encode(noise(0), "JPEG")
    segment = b"Exif\0\0not a TIFF header"
    broken = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
    assert to_rgb(Image.open(io.BytesIO(broken))).size == (9, 7)


# --- sources


def test_both_sources_give_equal_images_in_equal_order(tree, shards):
    directory, tar = open_source(tree), open_source(shards)
    assert (type(directory), type(tar)) == (DirectorySource, ShardSource)
    assert directory.class_names == tar.class_names == NAMES
    assert directory.labels.dtype == tar.labels.dtype == np.int64
    assert directory.labels.tolist() == tar.labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert keys(tar) == [f"p{row:02d}" for row in range(7)]
    assert directory.key(3) == "dog/p03.png"
    for row in range(7):
        for source in (directory, tar):
            assert has_noise(source, row, row)
    with pytest.raises(IndexError):
        tar[7]


def test_directories_are_searched_deeply_without_hidden_or_foreign_files(tree):
    for name in ("cat/.hidden.png", ".git/x.png", "cat/.thumbs/x.png", "cat/notes.txt", "cat/a.pdf"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_bytes(b"x")
    deep = tree / "owl" / "früh" / "DEEP.JPEG"
    deep.parent.mkdir()
    deep.write_bytes(encode(noise(1), "JPEG"))
    source = DirectorySource(tree)
    assert len(source) == 8
    assert source.key(5) == "owl/früh/DEEP.JPEG"
    assert source.labels[5] == 2


def test_shards_without_manifest(shards):
    with_manifest = ShardSource(shards).fingerprint
    (shards / "manifest.json").unlink()
    source = open_source(shards)
    assert source.class_names == ["0", "1", "2"]
    assert len(source) == 7
    assert source.fingerprint != with_manifest


@pytest.mark.parametrize("kind", ["tree", "shards"])
def test_fingerprint_depends_on_content_not_on_path_or_time(kind, request, tmp_path):
    directory = request.getfixturevalue(kind)
    before = open_source(directory).fingerprint
    moved = directory.rename(tmp_path / "moved")
    for path in moved.rglob("*.*"):
        os.utime(path, (1, 1))
    assert open_source(moved).fingerprint == before
    assert len(before) == 64
    if kind == "tree":
        (moved / "cat" / "p00.png").write_bytes(encode(noise(0, (20, 20))))
    else:
        write_image_shards([*records()[1:], records()[0]], moved, NAMES, rows_per_shard=3)
    assert open_source(moved).fingerprint != before


def test_shard_source_survives_pickling(shards):
    source = ShardSource(shards)
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint
    assert np.array_equal(np.asarray(copy[5]), np.asarray(source[5]))


# --- errors of sources


def test_missing_or_empty_directories(tmp_path, tree):
    assert_user_error("nowhere does not exist; set", open_source, tmp_path / "nowhere")
    assert_user_error("p00.png has an unsupported format; set a directory of", open_source, tree / "cat" / "p00.png")
    (tmp_path / "empty").mkdir()
    assert_user_error("no class directories", open_source, tmp_path / "empty")
    assert_user_error("no .tar shards", ShardSource, tmp_path / "empty")
    (tmp_path / "empty" / "a").mkdir()
    assert_user_error("empty/a holds no images", open_source, tmp_path / "empty")


def test_a_directory_that_disappears_during_the_search_is_one_line(tree, monkeypatch):
    monkeypatch.setattr(os, "walk", lambda path, **options: [(str(path), ["gone"], [])])
    assert_user_error("gone cannot be read", open_images, tree)


def test_unreadable_images_are_named(tree, shards):
    path = tree / "dog" / "p03.png"
    path.write_bytes(path.read_bytes()[:80])
    source = DirectorySource(tree)
    assert_user_error("dog/p03.png is not a readable image", source.__getitem__, 3)
    path.write_bytes(b"hello")
    assert_user_error("no image format", source.__getitem__, 3)
    (shards / "images-000002.tar").write_bytes(tar_of({"p06.png": b"hello", "p06.cls": b"2"}))
    assert_user_error(r"images-000002.tar, key p06 is not a readable", ShardSource(shards).__getitem__, 6)


def test_faults_of_the_disk_are_no_fault_of_the_image(tree, monkeypatch):
    """They must not lead to a skipped image."""
    source = DirectorySource(tree)

    def fails(path):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr(Path, "read_bytes", fails)
    error = assert_user_error(r"dog/p03.png cannot be read \(Stale file handle\); fix the disk", source.__getitem__, 3)
    assert not isinstance(error, UnreadableImage)
    monkeypatch.undo()
    (tree / "dog" / "p03.png").unlink()
    assert_user_error("dog/p03.png was listed but does not exist; restore it", source.__getitem__, 3)
    assert_user_error("dog/p03.png was listed but does not exist", lambda: source.fingerprint)


def test_lack_of_memory_is_no_fault_of_the_image(tree, monkeypatch):
    def fails(image):
        raise MemoryError

    monkeypatch.setattr(decode, "to_8_bit", fails)
    with pytest.raises(MemoryError):
        DirectorySource(tree)[3]


def test_shard_that_vanishes_or_shrinks_later(shards):
    source = ShardSource(shards)
    (shards / "images-000001.tar").unlink()
    assert_user_error("images-000001.tar, key p04 cannot be read", source.__getitem__, 4)
    (shards / "images-000000.tar").write_bytes(b"")
    assert_user_error("ends .* too early", source.__getitem__, 0)


DAMAGES = [*((keep, b"") for keep in (0, 100, 512, 1024, 1100, 3072)), (0, b"\x7f" * 200), (1024, b"\x7f" * 200)]


@pytest.mark.parametrize(("start", "header"), DAMAGES)
def test_truncated_shard_and_corrupt_header(shards, start, header):
    path = shards / "images-000000.tar"
    content = path.read_bytes()
    path.write_bytes(content[:start] + header + (content[start + 200 :] if header else b""))
    (shards / "manifest.json").unlink()
    assert_user_error("images-000000.tar is truncated or damaged", ShardSource, shards)


WRONG_MEMBERS = [
    ({"a.png": b"x"}, "key a: there is no .cls"),
    ({"a.png": b"x", "a.cls": b"0", "b.cls": b"0"}, "key b: there is no image"),
    ({"a.png": b"x", "a.jpg": b"x", "a.cls": b"0"}, "key a: more than one"),
    ({"a.png": b"x", "a.cls": b"cat"}, "key a: .cls holds b'cat'"),
    ({"a.png": b"x", "a.cls": b"-1"}, "key a: label -1 is out of range"),
    ({"a.txt": b"x"}, "hold no images"),
]


@pytest.mark.parametrize(("members", "match"), WRONG_MEMBERS)
def test_wrong_members_of_a_shard(tmp_path, members, match):
    (tmp_path / "x-0.tar").write_bytes(tar_of(members))
    assert_user_error(match, open_source, tmp_path)


def test_foreign_shards_in_directories_and_with_extras(tmp_path):
    members = {"d/a.PNG": encode(noise(4)), "d/a.cls": b"1\n", "d/a.json": b"{}", "d/b.cls": b"0"}
    (tmp_path / "x-0.tar").write_bytes(tar_of({**members, "d/b.webp": encode(noise(5), "WEBP", lossless=True)}))
    source = open_source(tmp_path)
    assert keys(source) == ["d/a", "d/b"]
    assert source.labels.tolist() == [1, 0]
    assert has_noise(source, 1, 5)


WRONG_MANIFESTS = [
    (lambda m: m | {"class_names": ["cat", "dog"]}, "images-000001.tar, key p05: label 2 is out of range"),
    (lambda m: m | {"shards": [m["shards"][0] | {"rows": 2}, *m["shards"][1:]]}, "000000.tar has 3 rows, .*says 2"),
    (lambda m: m | {"shards": m["shards"][:2]}, "images-000002.tar is not listed"),
    (lambda m: m | {"format": "other/1"}, "format 'other/1', expected"),
    (lambda m: [], "format 'list'"),
    (lambda m: {name: m[name] for name in ("format", "shards")}, "manifest.json is damaged"),
]


@pytest.mark.parametrize(("change", "match"), WRONG_MANIFESTS)
def test_manifest_that_is_damaged_or_disagrees_with_the_directory(shards, change, match):
    path = shards / "manifest.json"
    write_json(path, change(read_json(path, "manifest")))
    assert_user_error(match, ShardSource, shards)


def test_unreadable_manifest_and_absent_shard(shards):
    (shards / "images-000001.tar").unlink()
    assert_user_error("lists shard images-000001.tar, which is absent", open_source, shards)
    (shards / "manifest.json").write_text("{")
    assert_user_error("not readable JSON", ShardSource, shards)


# --- writing shards


def test_same_records_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_image_shards(iter(records()), tmp_path / name, NAMES, rows_per_shard=3, extra={"license": "MIT"})
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["images-000000.tar", "images-000001.tar", "images-000002.tar", "manifest.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert (manifest["format"], manifest["class_names"], manifest["rows"]) == ("aim_lightning.images/1", NAMES, 7)
    assert manifest["license"] == "MIT"
    for shard, rows in zip(manifest["shards"], (3, 3, 1), strict=True):
        assert shard["rows"] == rows
        assert shard["sha256"] == sha256_file(tmp_path / "a" / shard["name"])


def test_writing_again_replaces_all_of_the_old_set(shards):
    write_image_shards(records()[:2], shards, NAMES, rows_per_shard=3)
    assert sorted(path.name for path in shards.iterdir()) == ["images-000000.tar", "manifest.json"]
    assert len(open_source(shards)) == 2


def test_stopped_writing_leaves_no_manifest_and_no_part_of_a_shard(tmp_path):
    def stops():
        yield from records()[:4]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_image_shards(stops(), tmp_path, NAMES, rows_per_shard=3)
    assert [path.name for path in tmp_path.iterdir()] == ["images-000000.tar"]


WRONG_RECORDS = [
    ((b"", "gif", 0, "a"), "extension 'gif'"),
    ((b"", "png", 3, "a"), "label 3, but there are 3 class names"),
    ((b"", "png", 0, "a.b"), "'a.b' is empty or has a dot"),
    ((b"", "png", 0, "p00"), "'p00' comes twice"),
]


@pytest.mark.parametrize(("record", "match"), WRONG_RECORDS)
def test_records_that_could_not_be_read_back(tmp_path, record, match):
    assert_user_error(match, write_image_shards, [records()[0], record], tmp_path, NAMES, 1)
    assert_user_error("no images to write", write_image_shards, [], tmp_path, NAMES, 1)
    assert_user_error("rows_per_shard is 0", write_image_shards, records(), tmp_path, NAMES, 0)


# --- transforms


def test_center_crop_pad_and_resize():
    image = noise(0, (12, 8))
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    assert torch.equal(ImageTransform(8)(image, 0), pixels[:, :, 2:10])
    padded = ImageTransform(12, pad=2)(image, 0)
    assert torch.equal(padded[:, 2:10, :], pixels)
    assert padded[:, :2].sum() == padded[:, 10:].sum() == 0
    resized = ImageTransform(16, resize=16)(image, 0)
    expected = np.asarray(image.resize((24, 16), Image.Resampling.LANCZOS))[:, 4:20]
    assert torch.equal(resized, torch.from_numpy(expected.copy()).permute(2, 0, 1))
    assert (resized.dtype, resized.shape) == (torch.uint8, (3, 16, 16))


def published_resize(image: Image.Image, image_size: int) -> np.ndarray:
    """openai/guided-diffusion, image_datasets.py, the start of center_crop_arr and random_crop_arr, as published."""
    while min(*image.size) >= 2 * image_size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.BOX)
    scale = image_size / min(*image.size)
    return np.array(image.resize(tuple(round(x * scale) for x in image.size), resample=Image.BICUBIC))


def published_center_crop(image: Image.Image, image_size: int) -> np.ndarray:
    """openai/guided-diffusion, image_datasets.py, center_crop_arr, as published."""
    arr = published_resize(image, image_size)
    crop_y, crop_x = (arr.shape[0] - image_size) // 2, (arr.shape[1] - image_size) // 2
    return arr[crop_y : crop_y + image_size, crop_x : crop_x + image_size]


@pytest.mark.parametrize("size", [(9, 7), (12, 8), (8, 8), (41, 50), (100, 17), (13, 64)])
def test_adm_center_crop_is_the_published_one(size):
    image = noise(0, size)
    cropped = ImageTransform(8, crop="adm_center")(image, 0)
    assert np.array_equal(cropped.permute(1, 2, 0).numpy(), published_center_crop(image, 8))


def test_adm_random_crop_is_one_of_the_published_ones():
    """openai/guided-diffusion, random_crop_arr: shorter side 8 to 10 of 8 pixels, halved by BOX, then BICUBIC."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (47, 60, 3), dtype=np.uint8))
    published = {}
    for side in range(8, 11):
        pixels = published_resize(image, side)
        for top in range(pixels.shape[0] - 7):
            for left in range(pixels.shape[1] - 7):
                published[pixels[top : top + 8, left : left + 8].tobytes()] = (side, top, left)
    transform = ImageTransform(8, crop="adm_random")
    crops = [published[transform(image, seed).permute(1, 2, 0).numpy().tobytes()] for seed in range(200)]
    assert {side for side, _, _ in crops} == {8, 9, 10} and {top for _, top, _ in crops} == {0, 1, 2}
    assert len(set(crops)) > 20


def test_random_choices_are_a_function_of_the_seed_and_keep_the_generator_state():
    transform, image = ImageTransform(8, pad=2, crop="random", flip=True), noise(0, (12, 8))
    first = [transform(image, seed) for seed in range(40)]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = [transform(image, seed) for seed in reversed(range(40))][::-1]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({bytes(image.numpy().tobytes()) for image in first}) > 20
    transform(image, 2**63 - 1)


def test_half_of_the_images_are_mirrored():
    transform, image = ImageTransform(8, flip=True), noise(0, (8, 8))
    plain = ImageTransform(8)(image, 0)
    results = [transform(image, seed) for seed in range(200)]
    mirrored = [torch.equal(result, plain.flip(-1)) for result in results]
    assert all(torch.equal(r, plain) for r, flipped in zip(results, mirrored, strict=True) if not flipped)
    assert 70 < sum(mirrored) < 130


def test_repr_is_the_same_for_the_same_settings():
    assert repr(ImageTransform(8, pad=1)) == repr(ImageTransform(8, pad=1)) != repr(ImageTransform(8))


WRONG_SETTINGS = [
    ({"crop": "left"}, "crop is 'left'; it must be center, "),
    ({"image_size": 0}, "image_size is 0"),
    ({"resize": 0}, "resize is 0"),
    ({"pad": -1}, "pad is -1"),
    ({"resize": 4, "pad": 1}, "gives 6 pixels, less than image_size 8"),
    ({"crop": "adm_center", "resize": 9}, "resizes by itself, but resize is 9"),
]


@pytest.mark.parametrize(("settings", "match"), WRONG_SETTINGS)
def test_settings_that_give_no_image(settings, match):
    assert_user_error(match, ImageTransform, **{"image_size": 8, **settings})


def test_images_that_are_too_small_or_without_a_crop_of_another_size():
    assert ImageTransform(8, crop="none")(noise(0, (8, 8)), 0).shape == (3, 8, 8)
    for crop, fact in (("center", "less than"), ("random", "less than"), ("none", "not")):
        match = f"9x7 after resize and pad, {fact} image_size 8"
        assert_user_error(match, ImageTransform(8, crop=crop), noise(0), 0)


# --- pixels


def test_pixel_conversions_are_inverse_round_and_clamp():
    pixels = torch.arange(256, dtype=torch.uint8)
    floats = to_unit_range(pixels)
    assert (floats.dtype, floats[0], floats[255]) == (torch.float32, -1, 1)
    assert torch.equal(to_uint8(floats), pixels)
    assert torch.equal(to_uint8(floats.double()), pixels)
    assert torch.equal(to_uint8(floats + 0.4 / 127.5), pixels)
    assert torch.equal(to_uint8(floats - 0.4 / 127.5), pixels)
    outside = torch.tensor([-3.0, 3.0, -float("inf"), float("inf")])
    assert to_uint8(outside).tolist() == [0, 255, 0, 255]
    assert to_uint8(torch.tensor([1.0], dtype=torch.bfloat16)).tolist() == [255]


def test_pixel_conversions_refuse_nan_and_other_dtypes():
    # A UserError, which commands print as one line.
    assert_user_error("NaN", to_uint8, torch.tensor([0.0, float("nan")]))
    with pytest.raises(ValueError, match="floats"):
        to_uint8(torch.tensor([1]))
    with pytest.raises(ValueError, match="uint8"):
        to_unit_range(torch.tensor([1.0]))


# --- Fashion-MNIST


@pytest.mark.parametrize(("split", "rows"), [("train", 6000), ("val", 2000)])
def test_embedded_set_is_complete_and_balanced(split, rows):
    manifest = read_json(MINI / split / "manifest.json", "manifest")
    for shard in manifest["shards"]:
        assert sha256_file(MINI / split / shard["name"]) == shard["sha256"]
    source = open_source(MINI / split)
    assert (len(source), manifest["rows"]) == (rows, rows)
    assert np.bincount(source.labels).tolist() == [rows // 10] * 10
    assert source.class_names == fashion_mnist.CLASS_NAMES
    assert keys(source) == sorted(set(keys(source)))
    assert (source[0].size, source[0].mode) == ((28, 28), "RGB")
    assert "Zalando" in (MINI / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.skipif(not IDX.is_dir(), reason="no IDX files: install dataset-fashion-mnist or set FASHION_MNIST_DIR")
def test_regeneration_gives_the_same_pixels_in_the_same_order(tmp_path):
    fashion_mnist.make(tmp_path, IDX, train_rows=6000, val_rows=2000)
    for split in ("train", "val"):
        old, new = open_source(MINI / split), open_source(tmp_path / split)
        assert old.labels.tolist() == new.labels.tolist()
        for row in range(len(old)):
            assert old.key(row) == new.key(row)
            assert old[row].tobytes() == new[row].tobytes()


@pytest.fixture
def idx(tmp_path, monkeypatch) -> Path:
    """40 training and 20 test images in Fashion-MNIST's files."""
    directory = tmp_path / "idx"
    directory.mkdir()
    for prefix, rows in (("train", 40), ("t10k", 20)):
        labels = (np.arange(rows) * 7 % 10).astype(np.uint8)
        pixels = np.random.default_rng(rows).integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        images = struct.pack(">4I", 2051, rows, 28, 28) + pixels.tobytes()
        contents = {"images-idx3": images, "labels-idx1": struct.pack(">2I", 2049, rows) + labels.tobytes()}
        for name, content in contents.items():
            path = directory / f"{prefix}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(content))
            monkeypatch.setitem(fashion_mnist.SHA256, path.name, hashlib.sha256(content).hexdigest())
    return directory


def test_all_rows_keep_order_and_pixels(idx, tmp_path):
    fashion_mnist.make(tmp_path / "out", idx)
    for split, prefix in (("train", "train"), ("val", "t10k")):
        pixels, labels = fashion_mnist.read_split(idx, prefix)
        source = open_source(tmp_path / "out" / split)
        assert source.labels.tolist() == labels.tolist()
        assert source.key(12) == f"{split}-00012"
        for row in range(len(source)):
            assert np.array_equal(np.asarray(source[row])[..., 0], pixels[row])


def test_balanced_rows_are_the_first_of_each_class(idx, tmp_path, capsys):
    arguments = ["--source", str(idx), "--out", str(tmp_path / "out"), "--train_rows", "20", "--val_rows", "10"]
    assert run_script(fashion_mnist.make, arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"wrote 20 images to {tmp_path}/out/train", f"wrote 10 images to {tmp_path}/out/val"]
    source = open_source(tmp_path / "out" / "train")
    assert keys(source) == [f"train-{row:05d}" for row in range(20)]
    assert np.bincount(source.labels).tolist() == [2] * 10


def test_command_line_prints_how_to_get_the_files(tmp_path, capsys):
    assert run_script(fashion_mnist.make, ["--source", str(tmp_path / "no"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert_contains(error, ["apt-get install dataset-fashion-mnist", "data/README.md"])


def test_damaged_idx_files_and_unbalanced_rows(idx, tmp_path):
    def make(train_rows=None):
        fashion_mnist.make(tmp_path / "out", idx, train_rows)

    for rows in (15, 0, 50):
        assert_user_error(f"train_rows is {rows}; set a multiple of 10 from 10 to 40", make, rows)
    path = idx / "train-labels-idx1-ubyte.gz"
    good = path.read_bytes()
    for content in (gzip.compress(gzip.decompress(good)[:-1]), good[:-20], b"plain"):
        path.write_bytes(content)
        assert_user_error("train-labels-idx1-ubyte.gz is damaged or not Fashion-MNIST's file", make)
    path.unlink()
    assert_user_error("train-labels-idx1-ubyte.gz does not exist", make)


def test_a_link_to_a_parent_repeats_no_image(tree):
    before = keys(DirectorySource(tree))
    (tree / "cat" / "up").symlink_to("..")
    (tree / "cat" / "self").symlink_to(".")
    assert keys(DirectorySource(tree)) == before


def test_only_regular_files_are_opened(tree, shards):
    source, path = DirectorySource(tree), tree / "dog" / "p03.png"
    path.unlink()
    os.mkfifo(path)
    error = assert_user_error("dog/p03.png is not a regular file; remove it", source.__getitem__, 3)
    assert not isinstance(error, UnreadableImage)
    (shards / "manifest.json").unlink()
    (shards / "images-000009.tar").symlink_to("/dev/zero")
    assert_user_error("images-000009.tar is not a regular file", ShardSource, shards)


def test_labels_without_a_manifest_are_bounded_and_gaps_are_logged(tmp_path, caplog):
    image = encode(noise(0))
    for label in (3, 99_999_999):
        members = {"a.png": image, "a.cls": b"0", "b.png": image, "b.cls": str(label).encode()}
        (tmp_path / "images-000000.tar").write_bytes(tar_of(members))
        if label == 3:
            assert len(open_source(tmp_path).class_names) == 4
            assert "2 of 4 labels have no image (first: 1)" in caplog.text
    assert_user_error("key b: label 99999999 is out of range, labels without manifest.json", open_source, tmp_path)


def test_compressed_shards_are_refused_with_their_number(shards):
    for name in ("a.tar.gz", "b.tgz"):
        (shards / name).touch()
    assert_user_error("holds 2 compressed shards .first: a.tar.gz.; unpack them", open_source, shards)


def shard_members(*names, label=0):
    """An image of its own per name, with the .cls of the same name."""
    members = {}
    for number, name in enumerate(names):
        members |= {f"{name}.png": encode(noise(number)), f"{name}.cls": str(label).encode()}
    return members


def test_a_key_ends_at_the_first_dot_and_the_extension_is_the_last_part(tmp_path):
    names = ["d.1/IMG_1.edited", "d.1/IMG_2", "IMG_3.v1.0", "IMG_4"]
    (tmp_path / "x-0.tar").write_bytes(tar_of(shard_members(*names)))
    source = open_source(tmp_path)
    assert keys(source) == ["d.1/IMG_1", "d.1/IMG_2", "IMG_3", "IMG_4"]
    for row in range(4):
        assert has_noise(source, row, row)


def test_images_that_share_a_key_are_refused_with_their_number(tmp_path):
    (tmp_path / "x-0.tar").write_bytes(tar_of(shard_members("a", "a.edited", "b.1", "b.2", "c")))
    match = r"x-0.tar, key a: more than one image or .cls \(2 such keys of 3\); a key ends at the first dot"
    assert_user_error(match, open_source, tmp_path)


def test_members_that_are_left_out_are_counted_in_one_line(tmp_path, caplog):
    members = {**shard_members("a"), "a.json": b"{}", "b.bmp": b"x", "._a.png": b"x", "noext": b"x"}
    (tmp_path / "x-0.tar").write_bytes(tar_of(members))
    with tarfile.open(tmp_path / "x-1.tar", "w") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)
    assert len(open_source(tmp_path)) == 1
    (line,) = caplog.messages
    assert line.endswith("4 files left out, first x-0.tar: a.json (neither image nor .cls)")


def test_single_shards_and_brace_patterns_are_read(shards, tmp_path):
    every = open_source(shards)
    first, two = open_source(shards / "images-000000.tar"), open_source(f"{shards}/images-{{000001..000002}}.tar")
    assert [len(first), len(two), len(every)] == [3, 4, 7]
    assert first.class_names == two.class_names == every.class_names == NAMES
    assert two.labels.tolist() == every.labels[3:].tolist() and two.fingerprint != every.fingerprint
    assert has_noise(two, 0, 3)
    (shards / "manifest.json").unlink()
    assert open_source(f"{shards}/images-{{000000,000002}}.tar").labels.tolist() == [0, 0, 0, 2]


OTHER_LAYOUTS = [
    ("images-{000001..000004}.tar", "2 of the 4 files of .* are no .tar files .first: .*images-000003.tar"),
    ("images-{0..99999999999}.tar", "is no pattern of file names .a range goes beyond 9,999,999.; set a"),
    ("images-{000000,.tar", "is no pattern of file names .*; set a directory of class directories, of .tar shards or"),
    ("{.,sub}/images-000000.tar", "names several directories; put the shards into one"),
    ("images-000000.tar.gz", "images-000000.tar.gz has an unsupported format; set a directory of"),
    ("tables", "holds 2 files like a.parquet, which cannot be read; set a directory of class directories"),
    ("pipe.tar", "pipe.tar is not a regular file"),
]


@pytest.mark.parametrize(("name", "match"), OTHER_LAYOUTS)
def test_other_layouts_are_refused_with_those_that_are_supported(shards, name, match):
    os.mkfifo(shards / "pipe.tar")
    for directory in ("sub", "tables"):
        (shards / directory).mkdir()
    for path in ("images-000000.tar.gz", "sub/images-000000.tar", "tables/a.parquet", "tables/b.parquet"):
        (shards / path).touch()
    if name != "images-000000.tar.gz":
        (shards / "images-000000.tar.gz").unlink()
    assert_user_error(match, open_source, f"{shards}/{name}")


def test_files_that_are_no_images_are_counted_in_one_line(tree, caplog):
    for path in ("dog/phone.heic", "dog/noext", "cat/a.svg", "loose.png", "dog/Thumbs.db", "LICENSE", "dog/._1.png"):
        (tree / path).write_bytes(b"x")
    assert len(open_source(tree)) == 7
    (line,) = caplog.messages
    assert "4 files left out, first loose.png (not an image format that Pillow decodes" in line


def test_a_directory_that_cannot_be_listed_is_an_error(tree, monkeypatch):
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("dog"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert_user_error(r"dog cannot be read \(Permission denied\)", open_source, tree)


@pytest.mark.parametrize("val", ["val", "validation", "test"])
def test_splits_are_no_classes(tmp_path, val):
    for split in ("train", val):
        save_noise(tmp_path / split / "cat" / "a.png")
    match = f"contains splits, not classes; set images.train .*/train and images.val .*/{val}, or run `make dataset`"
    assert_user_error(match, open_source, tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "ship"):
        save_noise(tmp_path / name / "a.png")
    assert open_source(tmp_path).class_names == ["ship", "train"]


METADATA = [
    ("jsonl", '{"file_name": "b.png", "label": 2}\n\n{"file_name": "./s/a.png", "label": 0}\n', list("012"), [2, 0]),
    ("jsonl", '{"file_name": "b.png", "label": "1"}\n{"file_name": "s/a.png", "label": "no"}', ["1", "no"], [0, 1]),
    ("csv", "file_name,class,x\ns/a.png,owl,1\nb.png,cat,2\n", ["cat", "owl"], [1, 0]),
    ("csv", "\ufefffile_name,label\ns/a.png,1\nb.png,0\n", ["0", "1"], [1, 0]),
]


@pytest.mark.parametrize(("name", "text", "class_names", "labels"), METADATA)
def test_labels_of_a_hugging_face_imagefolder_are_read(tmp_path, caplog, name, text, class_names, labels):
    for number, path in enumerate(("s/a.png", "b.png", "unlisted.png")):
        save_noise(tmp_path / path, number)
    (tmp_path / f"metadata.{name}").write_text(text)
    source = open_source(tmp_path)
    assert (source.class_names, source.labels.tolist()) == (class_names, labels)
    expected = {"s/a.png": 0, "b.png": 1}
    for row in range(2):
        assert has_noise(source, row, expected[source.key(row)])
    assert "1 files left out, first unlisted.png" in caplog.text
    before = source.fingerprint
    swapped = text.replace("s/a.png", "?").replace("b.png", "s/a.png").replace("?", "b.png")
    (tmp_path / f"metadata.{name}").write_text(swapped)
    assert open_source(tmp_path).fingerprint != before


WRONG_METADATA = [
    ('{"file_name": "a.png"}', "image 1: it needs file_name, and label or class as text or integer"),
    ('{"label": 1}', "image 1: it needs file_name"),
    ('{"file_name": "a.png", "label": [1]}', "image 1: it needs"),
    ('{"file_name": "b.png", "label": 1}', "1 of 1 files are absent or no images .first: b.png"),
    ('{"file_name": "a.png", "label": 1}\n' * 2, "1 of 2 files are listed twice .first: a.png"),
    ('{"file_name": "a.png", "label": 99999999}', "label 99999999 is out of range"),
    ('{"file_name": "a.png", "label": -1}', "label -1 is out of range"),
    ("[1]", "is damaged .*no JSON object"),
    ("{", "is damaged"),
    ("", "no image is listed"),
]


@pytest.mark.parametrize(("text", "match"), WRONG_METADATA)
def test_metadata_that_cannot_be_used_is_refused(tmp_path, text, match):
    save_noise(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(text)
    assert_user_error(f"metadata.jsonl.*{match}", open_source, tmp_path)


def test_metadata_without_labels_leaves_class_directories(tree):
    (tree / "metadata.csv").write_text("file_name,caption\ncat/p00.png,a cat\n")
    assert open_source(tree).class_names == NAMES


def test_images_beyond_the_pixel_limit_are_called_too_large(tree, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    source = DirectorySource(tree)
    fact = r"p03.png is too large \(Image size \(63 pixels\) exceeds limit of 40 pixels\)"
    with pytest.raises(UnreadableImage, match=f"{fact}; allow it with images.max_pixels"):
        source[3]
    assert source.key(3) == "dog/p03.png"
    images = Images(str(tree), str(tree), image_size=7, max_pixels=63)
    assert images.open("train").batch([3])[0].shape == (1, 3, 7, 7)
    assert_user_error("max_pixels is 0", Images, str(tree), str(tree), max_pixels=0)
