"""`aim-lightning evaluate`: the same set from any number of processes, resumed after a kill, any source of images."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from evaluation.small import config, networks, place, write_step  # noqa: F401
from helpers import assert_user_error
from PIL import Image

from aim_lightning.cli.main import main
from aim_lightning.evaluation.evaluated_model import EvaluatedModel, identity
from aim_lightning.evaluation.image_sets import DirectoryImages, NpzImages, open_images
from aim_lightning.evaluation.report.table import render
from aim_lightning.evaluation.sample_blocks import (
    BlockDirectory,
    SamplePlan,
    balanced_labels,
    generate_missing,
    read_labels,
)
from aim_lightning.evaluation.score_record import over_seeds, plain_metrics, read_record
from aim_lightning.evaluation.scorer import Evaluation
from aim_lightning.runs.directory import newest_checkpoint
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:FrechetDistance", "ignore:.*Fabric.*")


def evaluate(config, *options):
    return [str(word) for word in ("evaluate", "--config", config, "--cache", config.parent / "cache", *options)]


@pytest.fixture(scope="module")
def scored(place, config):
    """A finished evaluation of 100 images: its directory and record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main(evaluate(config, "--num", 100)) == 0
    (directory,) = (place / "runs" / "small" / "main" / "evaluations").iterdir()
    return directory, json.loads((directory / "scores.json").read_text())


def test_files_and_record(scored, place):
    directory, record = scored
    assert {path.name for path in directory.iterdir()} == {"samples.npz", "preview.png", "scores.json"}
    assert directory.name.startswith("step=00000007-ema-100-cfg1.5-seed0-")
    names = {"fd_effnet_lite0_100", "kd_effnet_lite0_100", "precision_effnet_lite0_100", "recall_effnet_lite0_100"}
    assert set(record["metrics"]) == names | {"class_agreement_100"}
    assert all(np.isfinite(value) for value in record["metrics"].values())
    protocol = record["protocol"]
    labels = protocol["labels"]
    assert protocol["sampling"]["cfg_scale"] == 1.5 and (labels["classes"], labels["balanced"]) == (3, True)
    assert labels["chosen"] is None and len(labels["sha256"]) == 64
    assert protocol["reference"]["kind"] == "pictures" and len(protocol["reference"]["fingerprint"]) == 64
    assert len(protocol["reference"]["pixels_sha256"]) == 64
    assert protocol["features"]["weights_sha256"] and protocol["features"]["resizing"]
    assert record["model"]["step"] == 7 and len(record["model"]["weights_sha256"]) == 64
    assert record["commit"] and record["hardware"] and record["performance"]["sampling"]["images"] == 100
    assert str(place) not in json.dumps(record), "a path of this machine"
    results = json.loads((directory.parents[1] / "results.json").read_text())
    assert results["metrics"] == record["metrics"] and results["protocol"]["step"] == 7
    entry = results["protocol"]["evaluate_fd_effnet_lite0_100"]
    assert entry["sampling"] == protocol["sampling"] and entry["weights_sha256"] == record["model"]["weights_sha256"]
    assert (entry["seeds"], entry["metrics"]) == ([0], sorted(record["metrics"]))


def test_a_set_begun_on_another_device_or_backend_is_another_set(scored, tmp_path):
    """The directory's name follows the facts: blocks of two kinds of arithmetic never meet in one."""
    _, record = scored
    assert (record["model"]["backend"], record["model"]["device"]) == ("torch", "cpu")
    pipeline, plan, directories = networks(), SamplePlan(balanced_labels(50, range(3)), 8), set()
    for change in ({}, {"device": "cuda"}, {"backend": "mamba_ssm"}):
        generator = EvaluatedModel(pipeline, "x", identity(pipeline) | change)
        directories.add(Evaluation(generator, None, tmp_path, {}).directory(plan, SAMPLING))
    assert len(directories) == 3


def test_the_archive_is_what_adm_reads(scored):
    directory, _ = scored
    with np.load(directory / "samples.npz", allow_pickle=False) as file:
        images, labels = file["arr_0"], file["arr_1"]
        np.testing.assert_array_equal(file["labels"], labels)
    assert images.shape == (100, 4, 4, 3) and images.dtype == np.uint8
    assert labels.tolist() == [k % 3 for k in range(100)] and images.std() > 5
    alone = networks().generate([labels[37]], indices=[37], cfg_scale=1.5)
    assert np.abs(alone[0].permute(1, 2, 0).numpy().astype(int) - images[37]).max() <= 1
    with Image.open(directory / "preview.png") as preview:
        assert preview.size[0] > 8 * 64


def test_a_second_call_draws_nothing(scored, config, capsys):
    directory, _ = scored
    before = (directory / "scores.json").stat().st_mtime_ns
    assert main(evaluate(config, "--num", 100)) == 0
    assert "scored already" in capsys.readouterr().out
    assert (directory / "scores.json").stat().st_mtime_ns == before


def test_a_set_that_another_command_draws_is_left_to_it(config, place, monkeypatch, capsys):
    """Its blocks go when it is finished: two that draw them would end in a traceback."""
    seen = []

    def generating(self, directory, plan, sampling):
        seen.append(main(evaluate(config, "--num", 9)))
        raise UserError("enough")

    with monkeypatch.context() as patch:
        patch.setattr("aim_lightning.evaluation.scorer.Evaluation._images", generating)
        assert main(evaluate(config, "--num", 9)) == 2
    error = capsys.readouterr().err
    assert seen == [2] and "is being generated and scored by process" in error and "error: enough" in error
    assert main(evaluate(config, "--num", 9)) == 0


def test_a_checkpoint_needs_no_run(scored, config, place, capsys, tmp_path):
    file = newest_checkpoint(place / "runs" / "small" / "main")
    shutil.copyfile(file, tmp_path / "copy.ckpt")
    elsewhere = ("--run", "nowhere", "--out", tmp_path / "out", "--num", 5)
    assert main(evaluate(config, "--checkpoint", tmp_path / "copy.ckpt", *elsewhere)) == 0
    assert len(list((tmp_path / "out").glob("*/scores.json"))) == 1
    assert main(evaluate(config, "--checkpoint", tmp_path / "copied.ckpt", *elsewhere)) == 2
    assert "copied.ckpt does not exist" in capsys.readouterr().err


def test_given_images_get_the_same_scores(scored, config, place):
    """The archive, and the same images as a directory of PNGs, through the same code."""
    directory, record = scored
    loose = place / "loose"
    with np.load(directory / "samples.npz") as file:
        for i, image in enumerate(file["arr_0"]):
            (loose / f"{i % 2}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(loose / f"{i % 2}" / f"{i:03d}.png")
    for source, names in ((directory / "samples.npz", 5), (loose, 4)):  # a directory has no labels, so no agreement
        out = place / f"given-{source.name}"
        assert main(evaluate(config, "--samples", source, "--out", out)) == 0
        given = json.loads((out / "scores.json").read_text())
        assert len(given["metrics"]) == names and given["model"]["kind"] in ("npz", "folder")
        for name, value in given["metrics"].items():
            assert value == pytest.approx(record["metrics"][name], rel=1e-6), name


@pytest.mark.slow
def test_an_image_that_one_of_two_processes_cannot_read_is_one_line(scored, config, place):
    """Both end with that line, and nothing is written."""
    directory = place / "broken"
    directory.mkdir()
    with np.load(scored[0] / "samples.npz") as file:
        for number, image in enumerate(file["arr_0"][:20]):
            Image.fromarray(image).save(directory / f"{number:03d}.png")
    (directory / "015.png").write_bytes((directory / "014.png").read_bytes()[:60])
    words = ("--samples", directory, "--out", place / "half", "--feature_batch", 10, "--trainer.devices", 2)
    command = [sys.executable, "-m", "aim_lightning", *evaluate(config, *words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert errors and all(
        re.search(r"015.png is not a readable image .*; restore or remove it$", line) for line in errors
    )
    assert not (place / "half").exists()


def test_a_given_archive_needs_no_experiment_and_its_reference_is_printed(scored, place, capsys):
    directory, _ = scored
    archive = directory / "samples.npz"
    words = ("--samples", archive, "--reference", archive, "--out", place / "bare", "--cache", place / "cache")
    features = ROOT / "configs/features/effnet_lite0.yaml"
    command = ["evaluate", "--config", features, *words, "--features.size", "32", "--trainer.accelerator", "cpu"]
    assert main([str(word) for word in command]) == 0
    assert "reference: 100 images of samples.npz (sha256 " in capsys.readouterr().out
    metrics = plain_metrics(read_record(place / "bare" / "scores.json"))
    assert metrics["fd_effnet_lite0"] == pytest.approx(0, abs=1e-3) and metrics["precision_effnet_lite0"] == 1
    assert main([str(word) for word in ["evaluate", *words, "--trainer.accelerator", "cpu"]]) == 2
    assert "run `aim-lightning download inception` or make weights-inception" in capsys.readouterr().err


def test_features_that_are_not_finite_are_one_line_and_leave_nothing(scored, config, place, monkeypatch, capsys):
    """The reference is in the cache; of the images only the last ones' features are NaN."""
    from aim_lightning.metrics.features import EfficientNetLite0Features

    features = EfficientNetLite0Features._features

    def diverging(self, images):
        return features(self, images) * (float("nan") if len(images) < 32 else 1)

    monkeypatch.setattr(EfficientNetLite0Features, "_features", diverging)
    words = ("--samples", scored[0] / "samples.npz", "--out", place / "nan")
    assert main(evaluate(config, *words)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "not finite (NaN): the feature network's weights" in error
    assert not (place / "nan").exists()


def test_given_archives_of_one_name_have_directories_of_their_own(config, place):
    """Archives of several runs are all named samples.npz."""
    for seed in (0, 1):
        (place / str(seed)).mkdir()
        images = np.random.default_rng(seed).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
        np.savez(place / str(seed) / "samples.npz", arr_0=images)
        assert main(evaluate(config, "--samples", place / str(seed) / "samples.npz")) == 0
    found = list((place / "runs" / "given").glob("samples-*/scores.json"))
    hashes = {read_record(path)["model"]["sha256"] for path in found}
    assert len(found) == len(hashes) == 2


def test_a_network_that_diverged_is_one_line(config, place, monkeypatch, capsys):
    aim = networks().aim
    write_step(place, aim, 3, "diverged")
    from aim_lightning.models import VQModel

    decode = VQModel.decode
    monkeypatch.setattr(VQModel, "decode", lambda self, codes: decode(self, codes) * float("nan"))
    assert main(evaluate(config, "--run", "diverged", "--num", "5")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "have diverged; take an earlier checkpoint" in error


@pytest.mark.parametrize("command", ["evaluate", "sweep", "follow"])
def test_guidance_without_a_trained_null_class_needs_the_option(command, config, place, capsys):
    write_step(place, networks().aim, 7, "no_null", label_dropout=0)
    more = {"sweep": ("--grid", "top_k=2"), "follow": ("--patience", "0")}.get(command, ())
    words = [command, *evaluate(config, "--run", "no_null", "--num", "5", *more)[1:]]
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "sampling.cfg_scale is 1.5, but the network was trained with label_dropout 0" in error
    assert "allow_untrained_guidance" in error
    assert main([*words, "--allow_untrained_guidance"]) == 0
    assert main([*words, "--sampling.cfg_scale", "1"]) == 0


def test_an_older_checkpoint_leaves_results_as_they_are(config, place, capsys):
    old, new = (write_step(place, networks().aim, step, "two") for step in (3, 9))
    assert main(evaluate(config, "--run", "two", "--num", "5")) == 0
    path = place / "runs" / "small" / "two" / "results.json"
    before = path.read_text()
    assert new.name in before and main(evaluate(config, "--run", "two", "--checkpoint", old, "--num", "5")) == 0
    assert path.read_text() == before and "step=00000003.ckpt is not the newest" in capsys.readouterr().out


def test_chosen_classes_and_label_files_are_recorded(config, place):
    """A value on some of the classes has a name of its own; two files of labels give two protocols."""
    write_step(place, networks().aim, 7, "labels")
    root = place / "runs" / "small" / "labels"
    assert main(evaluate(config, "--run", "labels", "--num", 6, "--classes", "red,blue")) == 0
    (path,) = root.glob("evaluations/*/scores.json")
    record = read_record(path)
    assert record["protocol"]["labels"]["chosen"] == [0, 2] and "fd_effnet_lite0" in plain_metrics(record)
    assert {name.rpartition("_")[2] for name in record["metrics"]} == {"2classes"}
    assert "fd_effnet_lite0_6_2classes" in json.loads((root / "results.json").read_text())["metrics"]
    row = render({"some": record}, {})
    assert "| 6 of 2 classes |" in row
    hashes = set()
    for text in ("0 1 2 0 1 2", "0 0 1 1 2 2"):
        (place / "labels.txt").write_text(text)
        out = place / f"labels-{text[:3]}"
        assert main(evaluate(config, "--run", "labels", "--labels", place / "labels.txt", "--out", out)) == 0
        (path,) = out.glob("*/scores.json")
        labels = read_record(path)["protocol"]["labels"]
        hashes.add(labels.pop("sha256"))
        assert labels == {"classes": 3, "balanced": True, "chosen": None}
    assert len(hashes) == 2


def test_published_weights_and_seeds(config, place, capsys):
    assert main(evaluate(config, "--weights", place / "published", "--num", "40", "--seeds", "3")) == 0
    root = place / "runs" / "published" / "published" / "evaluations"
    (summary,) = root.glob("*3seeds.json")
    record = read_record(summary)
    assert record["seeds"] == [0, 1, 2] and record["model"]["kind"] == "published"
    records = [read_record(path) for path in root.glob("*/scores.json")]
    values = [one["metrics"]["fd_effnet_lite0_40"] for one in records]
    assert len(set(values)) == 3
    assert record["metrics"]["fd_effnet_lite0_40"] == pytest.approx(np.mean(values))
    assert record["std"]["fd_effnet_lite0_40"] == pytest.approx(np.std(values, ddof=1))
    assert "±" in capsys.readouterr().out


PLAN = SamplePlan(balanced_labels(50, range(3)), 8)
SAMPLING = SamplingOptions(cfg_scale=2.0, seed=3)


class Shard(ProcessGroup):
    """One of several ranks that run one after the other; it misses the blocks of all of them."""

    def __init__(self, rank, world_size):
        self.rank, self.world_size = rank, world_size

    def on_rank0(self, work):
        return list(range(7))

    def gather(self, value):
        return [value]


def test_one_two_or_eight_processes_draw_the_same_set(tmp_path):
    pipeline, sets = networks(), {}
    for world in (1, 2, 8):
        directory = BlockDirectory(tmp_path / str(world), PLAN)
        for rank in reversed(range(world)):
            generate_missing(pipeline, directory, SAMPLING, Shard(rank, world))
        assert directory.missing() == []
        sets[world] = np.concatenate([directory.read(block) for block in range(7)])
    assert len(sets[1]) == 50
    np.testing.assert_array_equal(sets[1], sets[2])
    np.testing.assert_array_equal(sets[1], sets[8])


def test_a_block_is_the_same_however_many_images_are_drawn(tmp_path):
    """The last block of a smaller set is filled up to the size of all."""
    pipeline, sets = networks(), {}
    for count in (50, 21):
        plan = SamplePlan(PLAN.labels[:count], PLAN.block_size)
        directory = BlockDirectory(tmp_path / str(count), plan)
        generate_missing(pipeline, directory, SAMPLING, ProcessGroup())
        sets[count] = np.concatenate([directory.read(block) for block in range(len(plan.blocks()))])
    np.testing.assert_array_equal(sets[21], sets[50][:21])


def test_only_missing_and_damaged_blocks_are_drawn_again(tmp_path):
    directory, pipeline = BlockDirectory(tmp_path, PLAN), networks()
    assert generate_missing(pipeline, directory, SAMPLING, ProcessGroup())["images"] == 50
    whole = [directory.read(block).copy() for block in range(7)]
    directory.file(2).unlink()
    directory.file(4).write_bytes(directory.file(4).read_bytes()[:-5])
    directory.file(6).write_bytes(b"")
    np.save(directory.file(5), whole[5][:-1])  # a readable file that lacks an image
    kept = directory.file(0).stat().st_mtime_ns
    assert directory.missing() == [2, 4, 5, 6]
    assert generate_missing(pipeline, directory, SAMPLING, ProcessGroup())["images"] == 8 + 8 + 8 + 2
    for block in range(7):
        np.testing.assert_array_equal(directory.read(block), whole[block])
    assert directory.file(0).stat().st_mtime_ns == kept


def test_what_a_kill_in_the_middle_of_a_write_left_is_cleared(config, place, monkeypatch):
    """Half a block and half an archive: of a dead process here, and one of another machine, whose fate is not known."""
    write_step(place, networks().aim, 7, "leftovers")
    command = evaluate(config, "--num", 20, "--run", "leftovers")
    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr("aim_lightning.evaluation.sample_blocks.write_npz", lambda *_: {}["the power fails here"])
        main(command)
    (directory,) = (place / "runs" / "small" / "leftovers" / "evaluations").iterdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name, host in (("blocks/.block-000001.npy", socket.gethostname()), ("blocks/.block-000000.npy", "elsewhere")):
        (directory / f"{name}.{host}.{dead.pid}-0a1b2c3d.tmp").touch()
    (directory / f".samples.npz.{socket.gethostname()}.{dead.pid}-0a1b2c3d.tmp").touch()
    assert main(command) == 0
    assert {path.name for path in directory.iterdir()} == {"samples.npz", "preview.png", "scores.json"}


@pytest.mark.slow
def test_killed_in_the_middle_and_continued_by_two_processes(scored, config, place):
    """kill -9 while blocks appear; two real processes continue; the archive is byte for byte the undisturbed one."""
    copy = place / "runs" / "small" / "killed"
    shutil.copytree(place / "runs" / "small" / "main" / "checkpoints", copy / "checkpoints")
    command = [sys.executable, "-m", "aim_lightning", *evaluate(config, "--num", 100, "--run", "killed")]
    command += ["--sampling.batch_size", "16", "--checkpoint", str(copy / "checkpoints" / "step=00000007.ckpt")]
    slow = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=slow, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and not list(copy.glob("evaluations/*/blocks/block-*.npy")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = sorted(path.name for path in copy.glob("evaluations/*/blocks/*"))
    done = subprocess.run(
        [*command, "--trainer.devices", "2"], cwd=ROOT, env=slow, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (directory,) = (copy / "evaluations").iterdir()
    record = read_record(directory / "scores.json")
    assert record["performance"]["processes"] == 2 or not left
    assert (directory / "samples.npz").read_bytes() == (scored[0] / "samples.npz").read_bytes()
    for name, value in record["metrics"].items():
        assert value == pytest.approx(scored[1]["metrics"][name], rel=1e-6), name


def test_labels():
    assert balanced_labels(7, [4, 2]).tolist() == [4, 2, 4, 2, 4, 2, 4]
    counts = balanced_labels(50_000, range(1000)).bincount()
    assert (counts == 50).all()
    assert_user_error("--num is 0", balanced_labels, 0, range(3))


def test_given_labels(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("0\n2\n1\n")
    assert read_labels(path, 3).tolist() == [0, 2, 1]
    for text, words in (("0\n3\n", "entry 2 is '3'; expected 0 to 2"), ("a", "'a'"), ("", "empty")):
        path.write_text(text)
        assert_user_error(words, read_labels, path, 3)
    assert_user_error("cannot be read", read_labels, tmp_path / "none", 3)


OTHER_ARRAYS = [
    (np.zeros((3, 4, 4, 3), np.float32), "float32; save uint8 images"),
    (np.zeros((3, 4, 4), np.uint8), "expected"),
    (np.zeros((3, 3, 4, 4), np.uint8), "expected"),
]


@pytest.mark.parametrize(("array", "words"), OTHER_ARRAYS)
def test_archives_of_something_else_are_refused(tmp_path, array, words):
    np.savez(tmp_path / "x.npz", arr_0=array)
    assert_user_error(words, NpzImages, tmp_path / "x.npz")


def test_archives_with_odd_labels_or_without_images(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((3, 4, 4, 3), np.uint8), arr_1=np.zeros(2))
    assert_user_error("one class number per image", NpzImages, tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", mu=np.zeros(3))
    assert_user_error("holds no arr_0, only mu", NpzImages, tmp_path / "y.npz")
    assert_user_error("does not exist", open_images, tmp_path / "nowhere")


def test_directories_of_images(tmp_path):
    assert_user_error("no images", DirectoryImages, tmp_path)
    for i, size in enumerate(((5, 4), (5, 4), (6, 4))):
        Image.new("RGB", size, (i, 0, 0)).save(tmp_path / f"{i}.png")
    images = DirectoryImages(tmp_path)
    (batch,) = images.batches([range(0, 2)])
    assert batch[0].shape == (2, 3, 4, 5) and batch[1] is None
    assert_user_error(r"2\.png is 6x4 pixels, 0\.png 5x4", lambda: list(images.batches([range(0, 3)])))
    (tmp_path / "2.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"2\.png is not a readable image \(no image format that Pillow supports\)"):
        list(images.batches([range(2, 3)]))
    first = images.identity()["sha256"]
    assert first == DirectoryImages(tmp_path).identity()["sha256"]
    Image.new("RGB", (5, 4), (9, 0, 0)).save(tmp_path / "0.png")
    assert DirectoryImages(tmp_path).identity()["sha256"] != first


def test_many_images_by_loader_processes(tmp_path):
    for i in range(300):
        Image.new("RGB", (4, 4), (i % 256, i // 256, 0)).save(tmp_path / f"{i:03d}.png")
    images = DirectoryImages(tmp_path)
    batches = list(images.batches([range(0, 128), range(128, 300)]))
    assert [len(images) for images, _, _ in batches] == [128, 172]
    images = torch.cat([images for images, _, _ in batches])
    assert [int(image[0, 0, 0]) + 256 * int(image[1, 0, 0]) for image in images] == list(range(300))


MISTAKES = [
    (["--run", "nowhere"], "no checkpoint"),
    (["--num", "0"], "--num is 0"),
    (["--num", "3"], "there are 3 images to be scored; these metrics need 4 or more"),
    (["--reference", "few.npz"], "there are 2 images in the reference; these metrics need 4 or more"),
    (["--reference", "one.npz"], "at least two images; the data gave 1"),
    (["--samples", "few.npz"], "there are 2 images to be scored"),
    (["--samples", "few.npz", "--weights", "x", "--seeds=2"], "--samples leaves --weights, --seeds without"),
    (["--weights", "x", "--raw", "true"], "--weights leaves --raw without effect"),
    (["--weights", "x", "--checkpoint", "y"], "--weights leaves --checkpoint without effect"),
    (["--seeds", "0"], "--seeds is 0"),
    (["--feature_batch", "0"], "--feature_batch is 0"),
    (["--classes", "purple"], "there is no class 'purple'"),
    (["--classes", "red", "--labels", "x"], "exclude each other"),
    (["--labels", "x", "--num=5"], "--labels leaves --num without effect"),
    (["--reference", "nowhere"], "nowhere does not exist"),
    (["--samples", "nowhere.npz"], "nowhere.npz does not exist"),
    (["--record", "a/b"], "--record is 'a/b'"),
    (["--weights", "no/where/at/all"], "does not exist"),
    (["--images.image_size", "8", "--images.resize", "8"], "4x4 pixels, those of the reference 8x8"),
    (["--trainer.devices", "0"], "trainer:"),
]


@pytest.mark.parametrize(("options", "words"), MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(config, capsys, options, words):
    for name, count in (("one", 1), ("few", 2)):
        np.savez(config.parent / f"{name}.npz", arr_0=np.zeros((count, 4, 4, 3), np.uint8))
    before = sorted((config.parent / "runs").rglob("*"))
    options = [config.parent / word if word in ("one.npz", "few.npz") else word for word in options]
    # Few images, where that is not the mistake.
    few = [] if {"--num", "--samples", "--labels"} & set(options) else ["--num", "5"]
    assert main(evaluate(config, *options, *few)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert sorted((config.parent / "runs").rglob("*")) == before


def test_over_seeds():
    records = [{"metrics": {"fid_5k": v}, "protocol": {"sampling": {"seed": s}}} for s, v in enumerate((1.0, 2.0, 3.0))]
    record = over_seeds(records)
    assert (record["metrics"], record["std"], record["seeds"]) == ({"fid_5k": 2.0}, {"fid_5k": 1.0}, [0, 1, 2])
    assert record["protocol"]["sampling"]["seed"] == [0, 1, 2] and records[0]["protocol"]["sampling"]["seed"] == 0
    single = over_seeds(records[:1])
    assert (single["metrics"], single["std"], single["seeds"]) == ({"fid_5k": 1.0}, {"fid_5k": 0.0}, [0])
    assert single["protocol"] == records[0]["protocol"]
