"""Tokenizing images into shards: what is stored, by job_options many processes, killed and continued."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from data.builders import encode, noise, save_noise
from data.test_tokens import stored
from helpers import TINY_VQ, assert_user_error, flip_bit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from aim_lightning.data.images.dataset import Images
from aim_lightning.data.images.shard_writer import write_image_shards
from aim_lightning.data.images.transforms import adm_resize
from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.data.tokens.format.tokenize_options import TokenizeOptions, Views
from aim_lightning.data.tokens.verify import verify_directory
from aim_lightning.data.tokens.write.encode import Encoder
from aim_lightning.data.tokens.write.tokenize_job import TokenizeJob
from aim_lightning.models import VQModel
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.pixels import to_unit_range
from aim_lightning.utils.precision import exact_products
from aim_lightning.utils.process import ProcessRank

FLIP = Views("center_flip")
OPTIONS = TokenizeOptions(FLIP, rows_per_shard=7, batch_size=3)
SKIP = dataclasses.replace(OPTIONS, on_error="skip")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """20 images of 16x16 pixels in two class directories."""
    root = tmp_path_factory.mktemp("images")
    for label in ("cat", "dog"):
        for i in range(10):
            save_noise(root / label / f"{i}.png", 10 * (label == "dog") + i, (16, 16))
    return root


@pytest.fixture
def images(tree):
    return Images(str(tree), str(tree), image_size=16).open("train")


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return VQModel(TINY_VQ).eval()


def write(images, tokenizer, out, job_options=OPTIONS, on_rows=lambda rows: None, **options) -> TokenManifest | None:
    return TokenizeJob(images, tokenizer, out, job_options, **options).run(on_rows)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file that is no leftover of a killed process, by its path."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_shards_hold_the_codes_of_the_images(images, tokenizer, tmp_path):
    seen = []
    manifest = write(images, tokenizer, tmp_path / "out", on_rows=seen.append)
    assert manifest == TokenManifest.load(tmp_path / "out") and sum(seen) == 20
    assert [s.rows for s in manifest.shards] == [7, 7, 6] and manifest.class_names == ["cat", "dog"]
    assert manifest.tokenizer_hash == tokenizer.weights_hash and manifest.grid == (8, 8)
    assert manifest.encoding["precision"] == "float32" and manifest.encoding["devices"] == ["cpu"]
    codes, labels = stored(tmp_path / "out")
    images, expected_labels = images.batch(range(20))
    x = to_unit_range(images)
    assert (labels == expected_labels.numpy()).all()
    for view, version in enumerate((x, x.flip(-1))):
        same = (tokenizer.encode(version).numpy() == codes[:, view]).mean()
        assert same > 0.999  # another batch size may round a tie the other way


# --- any number of processes, killed anywhere

FORK = multiprocessing.get_context("fork")  # a real process without the seconds that importing torch takes


def kill_at(event: int) -> None:
    """This process kills itself before or after the n-th flush or rename of a file, or batch."""
    ticks = itertools.count()

    def around(function):
        def act(*arguments, **options):
            if next(ticks) == event:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **options)
            if next(ticks) == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return act

    os.fsync, Path.replace = around(os.fsync), around(Path.replace)
    TokenizeJob._encode = around(TokenizeJob._encode)


def process(images, tokenizer, out, job_options, process_rank, event, workers) -> None:
    if event is not None:
        kill_at(event)
    write(images, tokenizer, out, job_options, process=process_rank, num_workers=workers)


def launch(images, tokenizer, out, job_options, events: list[int | None], workers: int = 0) -> list[int]:
    """As many processes as events, at the same time; exit codes."""
    running = []
    for rank, event in enumerate(events):
        arguments = (images, tokenizer, out, job_options, ProcessRank(rank, len(events)), event, workers)
        running.append(FORK.Process(target=process, args=arguments))
    for worker in running:
        worker.start()
    for worker in running:
        worker.join(120)
    return [worker.exitcode for worker in running]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows_per_shard=st.integers(1, 9),
    batch_size=st.integers(1, 4),
    views=st.sampled_from([Views(), FLIP]),
    kills=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=3), max_size=3),
    world=st.integers(1, 3),
)
@pytest.mark.slow
def test_same_bytes_for_any_number_of_processes_and_after_kills(
    images, tokenizer, tmp_path_factory, rows_per_shard, batch_size, views, kills, world
):
    job_options, directory = TokenizeOptions(views, rows_per_shard, batch_size), tmp_path_factory.mktemp("job")
    write(images, tokenizer, directory / "whole", job_options)
    for events in kills:  # each launch may have another number of processes than the one before
        codes = launch(images, tokenizer, directory / "cut", job_options, events)
        assert set(codes) <= {0, -signal.SIGKILL}
    assert launch(images, tokenizer, directory / "cut", job_options, [None] * world) == [0] * world
    assert contents(directory / "cut") == contents(directory / "whole")
    assert not list((directory / "cut").rglob(".tokens-*"))


def test_a_kill_leaves_finished_shards_and_no_manifest(images, tokenizer, tmp_path):
    # Before and after each: flush and rename of the plan; 3 batches, flush and rename of the tar and of its record.
    assert launch(images, tokenizer, tmp_path, OPTIONS, [2 * 2 + 2 * 7 + 3]) == [-signal.SIGKILL]
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["tokens-000000.tar"]
    assert not (tmp_path / "manifest.json").exists()
    before = (tmp_path / "tokens-000000.tar").stat().st_mtime_ns
    job = TokenizeJob(images, tokenizer, tmp_path, OPTIONS)
    assert [shard.name for shard in job.unfinished] == ["tokens-000001.tar", "tokens-000002.tar"]
    job.run()
    assert (tmp_path / "tokens-000000.tar").stat().st_mtime_ns == before


def test_files_that_another_process_is_writing_stay(images, tokenizer, tmp_path):
    """Two jobs on one directory, one of them late: it must still be able to rename its file."""
    live = tmp_path / f".tokens-000000.tar.{socket.gethostname()}.{os.getppid()}-0a1b2c3d.tmp"
    live.touch()
    write(images, tokenizer, tmp_path)
    assert live.exists()


def test_loader_workers_change_nothing(images, tokenizer, tmp_path):
    write(images, tokenizer, tmp_path / "none")
    assert launch(images, tokenizer, tmp_path / "two", OPTIONS, [None], workers=2) == [0]
    assert contents(tmp_path / "two") == contents(tmp_path / "none")


def test_the_last_process_writes_the_manifest(images, tokenizer, tmp_path):
    jobs = [TokenizeJob(images, tokenizer, tmp_path, OPTIONS, ProcessRank(rank, 3)) for rank in range(3)]
    assert [job.rows for job in jobs] == [7, 7, 6]
    assert jobs[2].run() is None and jobs[0].run() is None and not (tmp_path / "manifest.json").exists()
    assert jobs[1].run() == TokenManifest.load(tmp_path)
    assert all(job.complete() == TokenManifest.load(tmp_path) for job in jobs)  # also those that were earlier
    more = [TokenizeJob(images, tokenizer, tmp_path, OPTIONS, ProcessRank(rank, 5)) for rank in range(5)]
    assert not any(job.unfinished for job in more) and more[4].rows == 0  # fewer shards than processes
    assert all(job.run() == TokenManifest.load(tmp_path) for job in more)


LOSSES = [Path.unlink, lambda path: os.truncate(path, path.stat().st_size - 700), lambda path: flip_bit(path, 600)]


@pytest.mark.parametrize("lose", LOSSES, ids=["missing", "truncated", "changed"])
def test_a_lost_shard_is_made_again(images, tokenizer, tmp_path, lose):
    write(images, tokenizer, tmp_path)
    before, path = contents(tmp_path), tmp_path / "tokens-000001.tar"
    lose(path)
    job = TokenizeJob(images, tokenizer, tmp_path, OPTIONS)
    assert [shard.name for shard in job.unfinished] == [path.name]
    job.run()
    assert contents(tmp_path) == before


def test_a_directory_started_with_other_settings_is_refused(images, tokenizer, tmp_path):
    write(images, tokenizer, tmp_path / "out")
    before = contents(tmp_path / "out")
    torch.manual_seed(1)
    assert_user_error("started with another tokenizer_hash", write, images, VQModel(TINY_VQ).eval(), tmp_path / "out")
    for name, value in {"batch_size": 4, "rows_per_shard": 9, "precision": "bf16", "views": Views("ten_crop")}.items():
        with pytest.raises(UserError, match=f"started with another .*{'shards' if name.startswith('rows') else name}"):
            write(images, tokenizer, tmp_path / "out", dataclasses.replace(OPTIONS, **{name: value}))
    assert contents(tmp_path / "out") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.tar").write_bytes(b"")
    assert_user_error("did not write", write, images, tokenizer, tmp_path / "other")
    (tmp_path / "out" / "plan.json").write_text(json.dumps({"options": {}}))
    assert_user_error(r"started with another format, .*; delete", write, images, tokenizer, tmp_path / "out")


# --- unreadable images


@pytest.fixture
def damaged(tmp_path, tree):
    """The same set with the whole first shard and one image of the second unreadable."""
    for path in tree.rglob("*.png"):
        copy = tmp_path / "damaged" / path.relative_to(tree)
        copy.parent.mkdir(parents=True, exist_ok=True)
        bad = (path.parent.name == "cat" and int(path.stem) < 7) or (path.parent.name, path.stem) == ("dog", "1")
        copy.write_bytes(path.read_bytes()[:50] if bad else path.read_bytes())
    return Images(str(tmp_path / "damaged"), "", image_size=16).open("train")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_an_error_that_names_it(damaged, tokenizer, tmp_path, workers):
    with pytest.raises(UserError, match=r"cat/0.png is not a readable image .*--on_error skip"):
        write(damaged, tokenizer, tmp_path / "out", num_workers=workers)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.slow
def test_skipped_images_are_listed_and_the_others_keep_their_codes(damaged, images, tokenizer, tmp_path):
    manifest = write(damaged, tokenizer, tmp_path / "skip", SKIP)
    assert [item.key for item in manifest.skipped] == [*(f"cat/{i}.png" for i in range(7)), "dog/1.png"]
    assert all("not a readable image" in item.reason for item in manifest.skipped)
    assert [(s.name, s.rows) for s in manifest.shards] == [("tokens-000001.tar", 6), ("tokens-000002.tar", 6)]
    assert manifest == TokenManifest.load(tmp_path / "skip")
    write(images, tokenizer, tmp_path / "whole")
    codes, labels = stored(tmp_path / "whole")
    kept = [row for row in range(7, 20) if row != 11]
    some_codes, some_labels = stored(tmp_path / "skip")
    assert (some_codes == codes[kept]).all() and (some_labels == labels[kept]).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_transparent_images_are_counted_in_one_line(tree, tokenizer, tmp_path, caplog, workers):
    shutil.copytree(tree, tmp_path / "tree")
    for row in range(3):
        Image.new("RGBA", (16, 16), (0, 0, 0, 9 * row)).save(tmp_path / "tree" / "cat" / f"{row}.png")
    images = Images(str(tmp_path / "tree"), "", image_size=16, background="black").open("train")
    manifest = write(images, tokenizer, tmp_path / "out", num_workers=workers)
    (line,) = [line for line in caplog.messages if "transparent" in line]
    assert line.endswith("out: 3 images have transparent pixels, composited on images.background")
    assert manifest.source.endswith("/#000000")  # a job with another background is refused
    assert_user_error(
        "source", write, Images(str(tmp_path / "tree"), "", 16).open("train"), tokenizer, tmp_path / "out"
    )


def test_an_image_that_the_disk_cannot_read_is_never_skipped(tree, tokenizer, tmp_path):
    shutil.copytree(tree, tmp_path / "p")
    images, path = Images(str(tmp_path / "p"), "", image_size=16).open("train"), tmp_path / "p" / "cat" / "8.png"
    job = TokenizeJob(images, tokenizer, tmp_path / "out", SKIP)
    path.unlink()
    assert_user_error(r"cat/8.png was listed but does not exist; restore it", job.run)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_names_that_are_no_text(tokenizer, tmp_path):
    """Paths on Linux are bytes: of a class directory, of an image, and in the reason why it was skipped."""
    directory = os.fsencode(tmp_path) + b"/p/caf\xe9"
    os.makedirs(directory)  # noqa: PTH103 (bytes)
    for name in (b"fine.png", b"fine\xff.png", b"bad\xff.png"):
        Image.new("RGB", (16, 16)).save(os.fsdecode(directory + b"/" + name))
    Path(os.fsdecode(directory + b"/bad\xff.png")).write_bytes(b"no image")
    images = Images(str(tmp_path / "p"), "", image_size=16).open("train")
    assert images.class_names == ["caf\\udce9"]
    manifest = write(images, tokenizer, tmp_path / "out", SKIP)
    assert manifest == TokenManifest.load(tmp_path / "out") and manifest.rows == 2
    assert manifest.skipped[0].key == "caf\\udce9/bad\\udcff.png" and "bad\\udcff.png" in manifest.skipped[0].reason
    assert verify_directory(tmp_path / "out") == []


def test_a_foreign_set_may_use_the_same_keys_in_every_shard(tokenizer, tmp_path):
    (tmp_path / "p").mkdir()
    for number in range(2):
        records = [(encode(noise(16 * number + 8 * i, (16, 16))), "png", i, f"{i:06d}") for i in range(3)]
        write_image_shards(records, tmp_path / "one", ["a", "b", "c"], 3)
        (tmp_path / "one" / "images-000000.tar").rename(tmp_path / "p" / f"s{number}.tar")
    images = Images(str(tmp_path / "p"), "", image_size=16).open("train")
    assert [images.key(row) for row in (0, 5)] == ["s0/000000", "s1/000002"]
    write(images, tokenizer, tmp_path / "out")
    assert verify_directory(tmp_path / "out") == []
    (tmp_path / "p" / "s1.tar").unlink()
    assert Images(str(tmp_path / "p"), "", image_size=16).open("train").key(0) == "000000"  # unique as they are


def test_a_job_stopped_by_an_image_is_continued_with_skip(damaged, tokenizer, tmp_path):
    assert_user_error(".", write, damaged, tokenizer, tmp_path)
    assert len(write(damaged, tokenizer, tmp_path, SKIP).skipped) == 8


def test_nothing_but_unreadable_images(tokenizer, tmp_path):
    (tmp_path / "p" / "cat").mkdir(parents=True)
    (tmp_path / "p" / "cat" / "a.png").write_bytes(b"no image")
    images = Images(str(tmp_path / "p"), "", image_size=16).open("train")
    assert_user_error("none of the images .*a.png is not a readable", write, images, tokenizer, tmp_path / "out", SKIP)


def test_an_image_smaller_than_the_crop_is_named_and_can_be_skipped(tokenizer, tmp_path):
    for name, side in (("fine", 16), ("small", 8)):
        save_noise(tmp_path / "p" / "cat" / f"{name}.png", size=(side, side))
    images = Images(str(tmp_path / "p"), "", image_size=16).open("train")
    message = r"p/cat/small.png: .*8x8 .*less than image_size 16"
    assert_user_error(message, images.batch, [0, 1])
    assert_user_error(f"{message}.*--on_error skip", write, images, tokenizer, tmp_path / "out", OPTIONS)
    manifest = write(images, tokenizer, tmp_path / "out", SKIP)
    assert manifest.rows == 1 and [item.key for item in manifest.skipped] == ["cat/small.png"]


# --- options


def test_images_of_another_size_are_refused_before_anything_is_written(tokenizer, tree, tmp_path):
    large = Images(str(tree), "", image_size=32, resize=32).open("train")
    match = "32x32 pixels give 256 codes, the tokenizer's grid is 8x8"
    assert_user_error(match, write, large, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_large_a_codebook(images, tmp_path):
    large = VQModel(dataclasses.replace(TINY_VQ, codebook_size=65537))
    assert_user_error("65536 at most", write, images, large, tmp_path / "out")
    assert not (tmp_path / "out").exists()


OUT_OF_RANGE = [
    (lambda: Views("ten"), "views is 'ten'; use one of center, center_flip, ten_crop"),
    (lambda: Views("ten_crop", (1.0,)), "crop_range is"),
    (lambda: Views("center_flip", (1.1,)), "crop_range requires views ten_crop, but views is center_flip"),
    (lambda: Views("ten_crop", (1.1, 1.1)), "different numbers"),
    (lambda: TokenizeOptions(batch_size=0), "batch_size is 0"),
    (lambda: TokenizeOptions(on_error="ignore"), "on_error is 'ignore'"),
    (lambda: TokenizeOptions(precision="fp8"), "precision is 'fp8'; it must be float32, tf32 or bf16"),
    (lambda: Encoder(VQModel(TINY_VQ), torch.device("cpu"), "fp8"), "precision is 'fp8'; it must be float32"),
    (lambda: Encoder(VQModel(TINY_VQ), torch.device("cpu"), "tf32"), "needs an NVIDIA GPU"),
]


@pytest.mark.parametrize(("make", "match"), OUT_OF_RANGE)
def test_options_out_of_range(make, match):
    assert_user_error(match, make)


IDENTICAL_VIEWS = [
    ((1.3, 1.05), "crop_range 1.05 cuts images of 16 pixels from 16, which leaves no room"),
    ((1.1, 1.12), "crop_range 1.1 cuts images of 16 pixels from 17, as does 1.12"),
]


@pytest.mark.parametrize(("ranges", "match"), IDENTICAL_VIEWS)
def test_crops_with_identical_views_are_refused_before_anything_is_written(images, tokenizer, tmp_path, ranges, match):
    options = TokenizeOptions(Views("ten_crop", ranges))
    assert_user_error(match, TokenizeJob, images, tokenizer, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_precision_is_set_for_the_encoding_alone(tokenizer):
    torch.backends.cudnn.allow_tf32 = True
    seen, formats = [], []

    class Spy(VQModel):
        def encode(self, images):
            seen.append((torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu"), images.dtype))
            formats.append(images.is_contiguous(memory_format=torch.channels_last))
            return super().encode(images)

    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    for precision in ("float32", "bf16"):
        assert Encoder(Spy(TINY_VQ), torch.device("cpu"), precision)(images).dtype == torch.int32
    assert seen == [(False, False, torch.float32), (False, True, torch.float32)] and formats == [True, False]
    Encoder(Spy(TINY_VQ), torch.device("cpu"), channels_last=False)(images)
    assert not formats[-1]
    with exact_products(True):
        assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


# --- views


def test_ten_crop_stores_torchvisions_crops_of_adms_resizing(tokenizer, tmp_path):
    from torchvision.transforms import TenCrop

    image = noise(1, (41, 50))
    save_noise(tmp_path / "p" / "cat" / "a.png", 1, image.size)
    source = Images(str(tmp_path / "p"), "", image_size=16, crop="adm_center").open("train")
    views = Views("ten_crop", (1.3, 1.1))
    manifest = write(source, tokenizer, tmp_path / "out", TokenizeOptions(views, batch_size=1))
    assert (manifest.views, views.count) == (20, 20) and manifest.encoding["crop_range"] == [1.3, 1.1]
    codes, _ = stored(tmp_path / "out")
    expected = []
    for size in (20, 17):
        resized = adm_resize(image, size)
        left, top = (resized.width - size) // 2, (resized.height - size) // 2
        for crop in TenCrop(16)(resized.crop((left, top, left + size, top + size))):
            x = to_unit_range(torch.from_numpy(np.asarray(crop).copy()).permute(2, 0, 1)[None])
            expected.append(tokenizer.encode(x)[0].numpy())
    assert (codes[0] == np.stack(expected)).mean() > 0.999
