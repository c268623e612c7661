"""Tokenizing pictures into shards, stopped and continued."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import TINY_VQ
from PIL import Image

from aim_lightning.data.images.pictures import Pictures
from aim_lightning.data.tokens.manifest import TokenManifest
from aim_lightning.data.tokens.records import read_records
from aim_lightning.data.tokens.write import TokenizeOptions, write_token_shards
from aim_lightning.models import VQModel
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.pixels import to_unit_range

HOW = TokenizeOptions("center_flip", rows_per_shard=7, batch_size=3)


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{i}.png")
    return Pictures(str(tmp_path / "pictures"), str(tmp_path / "pictures"), image_size=16).open("train")


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return VQModel(TINY_VQ).eval()


def write(pictures, tokenizer, out, how=HOW, on_rows=lambda n: None):
    return write_token_shards(pictures, tokenizer, out, how, on_rows)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_hold_the_codes_of_the_pictures(pictures, tokenizer, tmp_path):
    seen = []
    manifest = write(pictures, tokenizer, tmp_path / "out", on_rows=seen.append)
    assert manifest == TokenManifest.load(tmp_path / "out") and sum(seen) == 20
    assert [s.rows for s in manifest.shards] == [7, 7, 6] and manifest.class_names == ["cat", "dog"]
    assert manifest.tokenizer_hash == tokenizer.weights_hash and manifest.grid == (8, 8)
    records = [r for s in manifest.shards for r in read_records(str(tmp_path / "out" / s.name), manifest)]
    codes, labels = (np.concatenate(column) for column in zip(*records, strict=True))
    images, expected_labels = pictures.batch(range(20))
    x = to_unit_range(images)
    assert (labels == expected_labels.numpy()).all()
    for view, version in enumerate((x, x.flip(-1))):
        same = (tokenizer.encode(version).numpy() == codes[:, view]).mean()
        assert same > 0.999  # another batch size may round a tie the other way


@pytest.mark.parametrize("stop_after", [1, 4, 8, 14, 19])
def test_stopped_anywhere_and_continued_gives_the_same_bytes(pictures, tokenizer, tmp_path, stop_after):
    write(pictures, tokenizer, tmp_path / "whole")
    total = []

    def stop(rows):
        total.append(rows)
        if sum(total) >= stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(pictures, tokenizer, tmp_path / "cut", on_rows=stop)
    assert not (tmp_path / "cut" / "manifest.json").exists()
    write(pictures, tokenizer, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_folder_begun_with_something_else_is_refused(pictures, tokenizer, tmp_path):
    write(pictures, tokenizer, tmp_path / "out")
    before = contents(tmp_path / "out")
    torch.manual_seed(1)
    with pytest.raises(UserError, match="begun with another tokenizer_hash"):
        write(pictures, VQModel(TINY_VQ).eval(), tmp_path / "out")
    with pytest.raises(UserError, match="begun with another options"):
        write(pictures, tokenizer, tmp_path / "out", dataclasses.replace(HOW, batch_size=4))
    assert contents(tmp_path / "out") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.tar").write_bytes(b"")
    with pytest.raises(UserError, match="did not write"):
        write(pictures, tokenizer, tmp_path / "other")


def test_pictures_of_another_size_are_refused_before_anything_is_written(tokenizer, tmp_path):
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "pictures" / "cat" / "a.png")
    large = Pictures(str(tmp_path / "pictures"), "", image_size=32).open("train")
    with pytest.raises(UserError, match="32x32 pixels give 256 codes, the tokenizer's grid is 8x8"):
        write(large, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_large_a_codebook_and_unknown_views(pictures, tokenizer, tmp_path):
    with torch.device("meta"):
        large = VQModel(dataclasses.replace(TINY_VQ, codebook_size=65537))
    with pytest.raises(UserError, match="65536 at most"):
        write(pictures, large, tmp_path / "out")
    with pytest.raises(UserError, match="views is 'ten'"):
        write(pictures, tokenizer, tmp_path / "out", dataclasses.replace(HOW, views="ten"))
    assert not (tmp_path / "out").exists()
