"""The image stream: order, crops and flips as functions of (seed, epoch, row)."""

import multiprocessing
import pickle
import re
import shutil
import subprocess

import pytest
import torch
from data.builders import save_noise
from data.test_tokens import set_up
from helpers import assert_user_error
from PIL import Image

from aim_lightning.data.images.datamodule import ImageDataModule
from aim_lightning.data.images.dataset import Images


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for split, rows in (("train", 13), ("val", 7)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(rows):
                save_noise(root / split / name / f"{i:02d}.png", 100 * rows + 20 * label + i, (30, 24))
    return root


def module(directory, rank=0, world=1, limit=None, workers=0, epoch=0, start=0, seed=0):
    images = Images(str(directory / "train"), str(directory / "val"), image_size=16, resize=20)
    data = ImageDataModule(images, 6, limit, 4, train_crop="random", num_workers=workers, seed=seed)
    return set_up(data, rank, world, epoch, start)


def test_a_set_is_opened_once_and_not_pickled(directory):
    """Every validation opens it, and listing a million images takes long."""
    images = Images(str(directory / "train"), str(directory / "val"), image_size=16)
    fresh = pickle.dumps(images)
    assert images.open("val") is images.open("val") is not images.open("train")
    assert pickle.dumps(images) == fresh and pickle.loads(fresh) == images
    assert len(pickle.loads(fresh).open("val")) == 14 and repr(images) == repr(pickle.loads(fresh))


def pixels_by_row(directory, **options):
    pixels = {}
    world = options.get("world", 1)
    for rank in range(world):
        for batch in module(directory, rank=rank, **options).train_dataloader():
            pixels |= {int(row): image for row, image in zip(batch["index"], batch["images"], strict=True)}
    return pixels


def test_transparent_images_are_reported_once_by_the_first_process(directory, tmp_path, caplog):
    shutil.copytree(directory, tmp_path / "clear")
    for row in range(13):
        Image.new("RGBA", (30, 24)).save(tmp_path / "clear" / "train" / "cat" / f"{row:02d}.png")
    for rank in range(2):
        for batch in module(tmp_path / "clear", rank=rank, world=2).train_dataloader():
            clear = batch["images"][batch["labels"] == 0]
            assert clear.numel() == 0 or clear.min() == 255
    (line,) = [line for line in caplog.messages if "transparent" in line]
    assert re.search(
        r"[1-3] of 3 images of a micro-batch have transparent pixels, composited on images.background", line
    )


def test_an_image_is_augmented_identically_on_any_rank(directory):
    expected = pixels_by_row(directory, epoch=1)
    assert len(expected) == 24  # 26 rows, 4 batches of 6
    for options in ({"world": 2}, {"world": 3, "limit": 1}, {"workers": 2}):
        other = pixels_by_row(directory, epoch=1, **options)
        assert other.keys() == expected.keys()
        assert all(torch.equal(other[row], expected[row]) for row in expected), options


def test_validation_workers_outlive_the_signals_of_a_cluster(directory):
    """SLURM sends SIGTERM to every process of a job; the rank must reach the end of its batch."""
    batches = iter(module(directory, workers=1).val_dataloader())
    rows = next(batches)["index"].tolist()
    (worker,) = multiprocessing.active_children()
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)  # not by the parent
    assert rows + [row for batch in batches for row in batch["index"].tolist()] == list(range(14))


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
def test_reading_keeps_the_global_random_state(directory, loader):
    """An additional validation must not change the dropout of training."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert len(list(getattr(module(directory), loader)())) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_epoch_and_seed_change_order_and_augmentation(directory):
    a, b = pixels_by_row(directory, epoch=0), pixels_by_row(directory, epoch=1)
    shared = a.keys() & b.keys()
    assert sum(not torch.equal(a[row], b[row]) for row in shared) > len(shared) / 2
    rows = [next(iter(module(directory, seed=seed).train_dataloader()))["index"].tolist() for seed in (0, 1)]
    assert rows[0] != rows[1]


def test_the_stream_starts_anywhere(directory):
    complete = [batch["index"].tolist() for batch in module(directory).train_dataloader()]
    assert [b["index"].tolist() for b in module(directory, start=2).train_dataloader()] == complete[2:]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_sees_every_image_once(directory, world):
    loaders = [module(directory, rank, world).val_dataloader() for rank in range(world)]
    rows = [int(row) for loader in loaders for batch in loader for row in batch["index"]]
    assert sorted(rows) == list(range(14))


def test_splits_with_other_classes_are_refused(directory, tmp_path):
    save_noise(tmp_path / "cat" / "a.png", size=(20, 20))
    data = ImageDataModule(Images(str(directory / "train"), str(tmp_path), image_size=16), 6)
    assert_user_error(r"label 1 is 'dog' in train but no class in val \(2 and 1 classes\)", data.setup, "fit")
