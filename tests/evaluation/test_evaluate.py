"""`aim-lightning evaluate`: the same set from any number of processes, resumed after a kill, any source of images."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, python, start_python
from evaluation.small import call, config, last_error, networks, refused, words, workspace, write_step  # noqa: F401
from helpers import assert_user_error
from PIL import Image

from aim_lightning.cli.main import main
from aim_lightning.evaluation import sample_blocks
from aim_lightning.evaluation.evaluated_model import EvaluatedModel, identity
from aim_lightning.evaluation.image_sets import DirectoryImages, NpzImages, open_images
from aim_lightning.evaluation.report.table import render
from aim_lightning.evaluation.sample_blocks import BlockDirectory, SamplePlan, balanced_labels, read_labels
from aim_lightning.evaluation.score_record import over_seeds, plain_metrics, read_record
from aim_lightning.evaluation.scorer import Evaluation
from aim_lightning.metrics.features import EfficientNetLite0Features
from aim_lightning.models import VQModel
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import sha256_file

pytestmark = pytest.mark.filterwarnings("ignore:FrechetDistance", "ignore:.*Fabric.*")


SQUEEZE = """
features:
  class_path: aim_lightning.metrics.features.TorchFeatures
  init_args: {{factory: torchvision.models.squeezenet1_1, weights: {weights}, layer: features, name: squeeze,
    num_features: 512, input_size: 32}}
"""
CLUSTER = ROOT / "configs/cluster/cpu.yaml"


@pytest.fixture(scope="module")
def scored(workspace, config):
    """Return the directory and the record of a finished evaluation of 100 images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert call("evaluate", config, "--num", 100) == 0
    (directory,) = (workspace / "runs" / "small" / "main" / "evaluations").iterdir()
    return directory, json.loads((directory / "scores.json").read_text())


@pytest.fixture
def archive(scored):
    return scored[0] / "samples.npz"


def loose_images(archive, directory, count=None):
    """Write the images of an archive as PNGs in two subdirectories."""
    with np.load(archive) as file:
        for i, image in enumerate(file["arr_0"][:count]):
            (directory / f"{i % 2}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(directory / f"{i % 2}" / f"{i:03d}.png")
    return directory


def test_files_and_record(scored, workspace):
    directory, record = scored
    assert {path.name for path in directory.iterdir()} == {"samples.npz", "preview.png", "scores.json"}
    assert directory.name.startswith("step=00000007-ema-100-cfg1.5-seed0-")
    bases = ("fd", "kd", "mind", "precision", "recall", "density", "coverage")
    assert set(record["metrics"]) == {f"{base}_effnet_lite0_100" for base in bases} | {"class_agreement_100"}
    assert record["protocol"]["mind"]["projections"] == 1000 and record["protocol"]["mind"]["seed"] == 2020
    assert all(np.isfinite(value) for value in record["metrics"].values())
    protocol = record["protocol"]
    labels = protocol["labels"]
    assert protocol["sampling"]["cfg_scale"] == 1.5 and (labels["classes"], labels["balanced"]) == (3, True)
    assert labels["chosen"] is None and len(labels["sha256"]) == 64
    assert protocol["reference"]["kind"] == "pictures" and len(protocol["reference"]["fingerprint"]) == 64
    assert len(protocol["reference"]["pixels_sha256"]) == 64
    assert "clamped to 0..255" in protocol["uint8"]
    assert protocol["features"]["weights_sha256"] and protocol["features"]["resizing"]
    assert record["model"]["step"] == 7 and len(record["model"]["weights_sha256"]) == 64
    assert (record["model"]["backend"], record["model"]["device"]) == ("torch", "cpu")
    assert record["commit"] and record["hardware"] and record["performance"]["sampling"]["images"] == 100
    assert str(workspace) not in json.dumps(record), "a path of this machine"
    results = json.loads((directory.parents[1] / "results.json").read_text())
    assert results["metrics"] == record["metrics"] and results["protocol"]["step"] == 7
    entry = results["protocol"]["evaluate_fd_effnet_lite0_100"]
    assert entry["sampling"] == protocol["sampling"] and entry["weights_sha256"] == record["model"]["weights_sha256"]
    assert (entry["seeds"], entry["metrics"]) == ([0], sorted(record["metrics"]))


def test_another_device_or_backend_generates_another_set(tmp_path):
    """Blocks of two kinds of arithmetic never mix in one directory."""
    pipeline, plan, directories = networks(), SamplePlan(balanced_labels(50, range(3)), 8), set()
    for change in ({}, {"device": "cuda"}, {"backend": "mamba_ssm"}):
        model = EvaluatedModel(pipeline, "x", identity(pipeline) | change)
        directories.add(Evaluation(model, None, tmp_path, {}).directory(plan, SAMPLING))
    assert len(directories) == 3


def test_the_archive_has_adms_format(scored, archive):
    with np.load(archive, allow_pickle=False) as file:
        images, labels = file["arr_0"], file["arr_1"]
        np.testing.assert_array_equal(file["labels"], labels)
    assert images.shape == (100, 4, 4, 3) and images.dtype == np.uint8
    assert labels.tolist() == [k % 3 for k in range(100)] and images.std() > 5
    alone = networks().generate([labels[37]], indices=[37], cfg_scale=1.5)
    assert np.abs(alone[0].permute(1, 2, 0).numpy().astype(int) - images[37]).max() <= 1
    with Image.open(scored[0] / "preview.png") as preview:
        assert preview.size[0] > 8 * 64


def test_a_second_call_generates_nothing(scored, config, capsys):
    path = scored[0] / "scores.json"
    before = path.stat().st_mtime_ns
    assert call("evaluate", config, "--num", 100) == 0
    text = capsys.readouterr().out
    assert "scored already" in text and "next: make sweep EXP=" in text
    assert path.stat().st_mtime_ns == before


def test_only_one_command_evaluates_a_set(config, monkeypatch, capsys):
    """The first command to finish removes the blocks, so a second one is refused meanwhile."""
    codes = []

    def generating(self, *arguments):
        codes.append(call("evaluate", config, "--num", 9))
        raise UserError("enough")

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "_images", generating)
        assert call("evaluate", config, "--num", 9) == 2
    error = capsys.readouterr().err
    assert codes == [2] and "is being generated and scored by process" in error and "error: enough" in error
    assert call("evaluate", config, "--num", 9) == 0


def test_a_checkpoint_needs_no_run(workspace, config, capsys, tmp_path):
    file = workspace / "runs" / "small" / "main" / "checkpoints" / "step=00000007.ckpt"
    shutil.copyfile(file, tmp_path / "copy.ckpt")
    elsewhere = ("--run", "nowhere", "--out", tmp_path / "out", "--num", 5)
    assert call("evaluate", config, "--checkpoint", tmp_path / "copy.ckpt", *elsewhere) == 0
    assert len(list((tmp_path / "out").glob("*/scores.json"))) == 1
    error = refused(capsys, "evaluate", config, "--checkpoint", tmp_path / "copied.ckpt", *elsewhere)
    assert "copied.ckpt does not exist" in error


def test_scores_elsewhere_need_no_writable_run(workspace, config, tmp_path, monkeypatch, capsys):
    def read_only(path, value):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    write_step(workspace, 7, "shared")
    monkeypatch.setattr("aim_lightning.runs.results.write_json", read_only)
    assert call("evaluate", config, "--run", "shared", "--out", tmp_path, "--num", 5) == 0
    out, err = capsys.readouterr()
    assert "results.json cannot be written (Read-only file system); continuing without it" in err
    assert "fd_effnet_lite0_5" in out and len(list(tmp_path.glob("*/scores.json"))) == 1


def test_existing_images_have_the_same_scores(scored, archive, config, tmp_path):
    """The archive, and the same images as a directory of PNGs, through the same code."""
    sources = {archive: 8, loose_images(archive, tmp_path / "loose"): 7}  # a directory has no labels, so no agreement
    for source, count in sources.items():
        out = tmp_path / f"scores-{source.name}"
        assert call("evaluate", config, "--samples", source, "--out", out) == 0
        record = json.loads((out / "scores.json").read_text())
        assert len(record["metrics"]) == count and record["model"]["kind"] in ("npz", "folder")
        for name, value in record["metrics"].items():
            assert value == pytest.approx(scored[1]["metrics"][name], rel=1e-6), name


@pytest.mark.slow
def test_an_image_that_one_of_two_processes_cannot_read_is_one_line(archive, config, tmp_path, aim_cli):
    """Both processes end with that line, and nothing is written."""
    directory = loose_images(archive, tmp_path / "broken", 20)
    (directory / "1" / "015.png").write_bytes((directory / "1" / "013.png").read_bytes()[:60])
    options = ("--samples", directory, "--out", tmp_path / "out", "--feature_batch", 5, "--trainer.devices", 2)
    result = aim_cli(*words("evaluate", config, *options))
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    message = re.compile(r"015.png is not a readable image .*; restore or remove it$")
    assert errors and all(message.search(line) for line in errors)
    assert not (tmp_path / "out").exists()


def test_an_archive_needs_no_experiment_and_its_reference_is_printed(archive, workspace, tmp_path, capsys):
    options = ("--samples", archive, "--reference", archive, "--out", tmp_path, "--cache", workspace / "cache")
    options = [str(word) for word in (*options, "--trainer.accelerator", "cpu")]
    features = str(ROOT / "configs/features/effnet_lite0.yaml")
    assert main(["evaluate", "--config", features, *options, "--features.size", "32"]) == 0
    assert "reference: 100 images of samples.npz (sha256 " in capsys.readouterr().out
    metrics = plain_metrics(read_record(tmp_path / "scores.json"))
    assert metrics["fd_effnet_lite0"] == pytest.approx(0, abs=1e-3) and metrics["precision_effnet_lite0"] == 1
    assert main(["evaluate", *options]) == 2
    assert "run `aim-lightning download inception` or make weights-inception" in last_error(capsys)


def test_two_networks_and_held_out_images_give_fdr_and_its_mean(archive, config, workspace, tmp_path, capsys):
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "net.pth")
    features = tmp_path / "squeeze.yaml"
    features.write_text(SQUEEZE.format(weights=tmp_path / "net.pth"))
    samples, heldout = loose_images(archive, tmp_path / "samples", 40), loose_images(archive, tmp_path / "real", 50)
    options = ("--samples", samples, "--out", tmp_path / "out", "--more_features", features)
    assert call("evaluate", config, *options, "--reference", archive, "--fdr", heldout) == 0
    record = read_record(tmp_path / "out" / "scores.json")
    metrics, protocol = plain_metrics(record), record["protocol"]
    ratios = metrics["fdr_effnet_lite0"], metrics["fdr_squeeze"]
    assert metrics["fdr_effnet_lite0+squeeze"] == pytest.approx(sum(ratios) / 2) and min(ratios) > 0
    assert {"fd_squeeze", "coverage_squeeze"} < set(metrics)
    other = protocol["more_features"]["squeeze"]
    assert other["features"]["network"] == "squeeze" and other["reference"] == protocol["reference"]
    assert protocol["fdr"]["heldout"]["name"] == "real" and protocol["fdr"]["num_heldout"] == 40
    assert "--fdr: these are the reference images" in refused(capsys, "evaluate", config, "--fdr", "val")
    twice = refused(capsys, "evaluate", config, "--more_features", ROOT / "configs/features/effnet_lite0.yaml")
    assert "effnet_lite0 is used twice" in twice
    assert "does not set the key features" in refused(capsys, "evaluate", config, "--more_features", CLUSTER)


def test_features_that_are_not_finite_are_one_line(archive, config, tmp_path, monkeypatch, capsys):
    """The reference is in the cache; of the images only the last ones' features are NaN."""
    features = EfficientNetLite0Features._features

    def diverging(self, images):
        return features(self, images) * (float("nan") if len(images) < 32 else 1)

    monkeypatch.setattr(EfficientNetLite0Features, "_features", diverging)
    error = refused(capsys, "evaluate", config, "--samples", archive, "--out", tmp_path / "nan")
    assert "not finite (NaN): the feature network's weights" in error
    assert not (tmp_path / "nan").exists()


def test_archives_of_one_name_have_separate_directories(config, workspace, tmp_path):
    """Archives of several runs are all named samples.npz."""
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        images = np.random.default_rng(seed).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
        np.savez(tmp_path / str(seed) / "samples.npz", arr_0=images)
        assert call("evaluate", config, "--samples", tmp_path / str(seed) / "samples.npz") == 0
    paths = list((workspace / "runs" / "given").glob("samples-*/scores.json"))
    assert len(paths) == len({read_record(path)["model"]["sha256"] for path in paths}) == 2


def test_a_network_that_diverged_is_one_line(config, workspace, monkeypatch, capsys):
    write_step(workspace, 3, "diverged")
    decode = VQModel.decode
    monkeypatch.setattr(VQModel, "decode", lambda self, codes: decode(self, codes) * float("nan"))
    error = refused(capsys, "evaluate", config, "--run", "diverged", "--num", "5")
    assert "have diverged; take an earlier checkpoint" in error


@pytest.mark.parametrize("command", ["evaluate", "sweep", "follow"])
def test_guidance_without_a_trained_null_class_needs_the_option(command, config, workspace, capsys):
    write_step(workspace, 7, "no_null", label_dropout=0)
    options = {"sweep": ("--grid", "top_k=2"), "follow": ("--patience", "0")}.get(command, ())
    options += ("--run", "no_null", "--num", "5")
    error = refused(capsys, command, config, *options)
    assert "sampling.cfg_scale is 1.5, but the network was trained with label_dropout 0" in error
    assert "allow_untrained_guidance" in error
    assert call(command, config, *options, "--allow_untrained_guidance") == 0
    assert call(command, config, *options, "--sampling.cfg_scale", "1") == 0


def test_values_against_two_references_are_both_in_results(config, workspace):
    write_step(workspace, 7, "references")
    np.savez(workspace / "other.npz", arr_0=np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), np.uint8))
    for options in ((), ("--reference", workspace / "other.npz")):
        assert call("evaluate", config, "--run", "references", "--num", "5", *options) == 0
    results = json.loads((workspace / "runs/small/references/results.json").read_text())
    sha256 = sha256_file(workspace / "other.npz")
    own, other = "fd_effnet_lite0_5", f"fd_effnet_lite0_5@other.npz-{sha256[:8]}"
    assert results["metrics"][own] != results["metrics"][other]
    entries = {name: entry["reference"]["name"] for name, entry in results["protocol"].items() if name != "step"}
    assert entries == {f"evaluate_{own}": "val", f"evaluate_{other}": "other.npz"}


def test_an_older_checkpoint_leaves_results_unchanged(config, workspace, capsys):
    old, new = (write_step(workspace, step, "two") for step in (3, 9))
    assert call("evaluate", config, "--run", "two", "--num", "5") == 0
    path = workspace / "runs" / "small" / "two" / "results.json"
    before = path.read_text()
    assert new.name in before and call("evaluate", config, "--run", "two", "--checkpoint", old, "--num", "5") == 0
    assert path.read_text() == before and "step=00000003.ckpt is not the newest" in capsys.readouterr().out


def test_chosen_classes_and_label_files_are_recorded(config, workspace, tmp_path):
    """A value on some of the classes has its own name; two files of labels give two protocols."""
    write_step(workspace, 7, "labels")
    root = workspace / "runs" / "small" / "labels"
    assert call("evaluate", config, "--run", "labels", "--num", 6, "--classes", "red,blue") == 0
    (path,) = root.glob("evaluations/*/scores.json")
    record = read_record(path)
    assert record["protocol"]["labels"]["chosen"] == [0, 2] and "fd_effnet_lite0" in plain_metrics(record)
    assert {name.rpartition("_")[2] for name in record["metrics"]} == {"2classes"}
    assert "fd_effnet_lite0_6_2classes" in json.loads((root / "results.json").read_text())["metrics"]
    assert "| 6 of 2 classes |" in render({"some": record}, {})
    hashes = set()
    for text in ("0 1 2 0 1 2", "0 0 1 1 2 2"):
        (tmp_path / "labels.txt").write_text(text)
        out = tmp_path / text[:3]
        assert call("evaluate", config, "--run", "labels", "--labels", tmp_path / "labels.txt", "--out", out) == 0
        (path,) = out.glob("*/scores.json")
        labels = read_record(path)["protocol"]["labels"]
        hashes.add(labels.pop("sha256"))
        assert labels == {"classes": 3, "balanced": True, "chosen": None}
    assert len(hashes) == 2


def test_published_weights_and_seeds(config, workspace, capsys):
    assert call("evaluate", config, "--weights", workspace / "published", "--num", "40", "--seeds", "3") == 0
    root = workspace / "runs" / "published" / "published" / "evaluations"
    (summary,) = root.glob("*3seeds.json")
    record = read_record(summary)
    assert record["seeds"] == [0, 1, 2] and record["model"]["kind"] == "published"
    values = [read_record(path)["metrics"]["fd_effnet_lite0_40"] for path in root.glob("*/scores.json")]
    assert len(set(values)) == 3
    assert record["metrics"]["fd_effnet_lite0_40"] == pytest.approx(np.mean(values))
    assert record["std"]["fd_effnet_lite0_40"] == pytest.approx(np.std(values, ddof=1))
    assert "±" in capsys.readouterr().out


PLAN = SamplePlan(balanced_labels(50, range(3)), 8)
SAMPLING = SamplingOptions(cfg_scale=2.0, seed=3)


class Shard(ProcessGroup):
    """One of several ranks that run one after the other; each one lacks the blocks of all of them."""

    def __init__(self, rank, world_size):
        self.rank, self.world_size, self.is_rank_zero = rank, world_size, rank == 0

    def on_rank0(self, work):
        return list(range(7))

    def gather(self, value):
        return [value]


def generate_missing(directory, ranks=None):
    return sample_blocks.generate_missing(networks(), directory, SAMPLING, ranks or ProcessGroup())


def content(directory):
    return np.concatenate([directory.block(block) for block in range(len(directory.plan.blocks()))])


def test_one_two_or_eight_processes_generate_the_same_set(tmp_path):
    sets = {}
    for world in (1, 2, 8):
        directory = BlockDirectory(tmp_path / str(world), PLAN)
        for rank in reversed(range(world)):
            generate_missing(directory, Shard(rank, world))
        assert directory.missing() == []
        sets[world] = content(directory)
    assert len(sets[1]) == 50
    np.testing.assert_array_equal(sets[1], sets[2])
    np.testing.assert_array_equal(sets[1], sets[8])
    # The last block of a smaller set is padded to the size of all.
    smaller = BlockDirectory(tmp_path / "smaller", SamplePlan(PLAN.labels[:21], PLAN.block_size))
    generate_missing(smaller)
    np.testing.assert_array_equal(content(smaller), sets[1][:21])


def test_only_missing_and_damaged_blocks_are_generated_again(tmp_path):
    directory = BlockDirectory(tmp_path, PLAN)
    assert generate_missing(directory)["images"] == 50
    blocks = [directory.block(block).copy() for block in range(7)]
    directory.file(2).unlink()
    directory.file(4).write_bytes(directory.file(4).read_bytes()[:-5])
    directory.file(6).write_bytes(b"")
    np.save(directory.file(5), blocks[5][:-1])  # a readable file that lacks an image
    kept = directory.file(0).stat().st_mtime_ns
    assert directory.missing() == [2, 4, 5, 6]
    assert generate_missing(directory)["images"] == 8 + 8 + 8 + 2
    for block in range(7):
        np.testing.assert_array_equal(directory.block(block), blocks[block])
    assert directory.file(0).stat().st_mtime_ns == kept


def test_partial_files_of_a_killed_process_are_removed(config, workspace, monkeypatch):
    """Partial blocks and archives: of a dead process of this machine, and of another machine."""
    write_step(workspace, 7, "leftovers")
    options = ("evaluate", config, "--num", 20, "--run", "leftovers")
    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(sample_blocks, "write_npz", lambda *_: {}["power failure"])
        call(*options)
    (directory,) = (workspace / "runs" / "small" / "leftovers" / "evaluations").iterdir()
    dead, host = subprocess.Popen(["true"]), socket.gethostname()
    dead.wait()
    partial = (f"blocks/.block-000001.npy.{host}", "blocks/.block-000000.npy.elsewhere", f".samples.npz.{host}")
    for name in partial:
        (directory / f"{name}.{dead.pid}-0a1b2c3d.tmp").touch()
    assert call(*options) == 0
    assert {path.name for path in directory.iterdir()} == {"samples.npz", "preview.png", "scores.json"}


@pytest.mark.slow
def test_two_processes_continue_a_killed_evaluation(scored, config, workspace):
    """kill -9 while blocks appear; two real processes continue; the archive is byte for byte the undisturbed one."""
    copy = workspace / "runs" / "small" / "killed"
    shutil.copytree(workspace / "runs" / "small" / "main" / "checkpoints", copy / "checkpoints")
    options = ("--num", 100, "--run", "killed", "--checkpoint", copy / "checkpoints" / "step=00000007.ckpt")
    command = ("-m", "aim_lightning", *words("evaluate", config, *options))
    process = start_python(*command)
    deadline = time.monotonic() + 120
    while process.poll() is None and not list(copy.glob("evaluations/*/blocks/block-*.npy")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    leftovers = list(copy.glob("evaluations/*/blocks/*"))
    result = python(*command, "--trainer.devices", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    (directory,) = (copy / "evaluations").iterdir()
    record = read_record(directory / "scores.json")
    assert record["performance"]["processes"] == 2 or not leftovers
    assert (directory / "samples.npz").read_bytes() == (scored[0] / "samples.npz").read_bytes()
    for name, value in record["metrics"].items():
        assert value == pytest.approx(scored[1]["metrics"][name], rel=1e-6), name


def test_labels(tmp_path):
    assert balanced_labels(7, [4, 2]).tolist() == [4, 2, 4, 2, 4, 2, 4]
    assert (balanced_labels(50_000, range(1000)).bincount() == 50).all()
    path = tmp_path / "labels.txt"
    path.write_text("0\n2\n1\n")
    assert read_labels(path, 3).tolist() == [0, 2, 1]
    for text, message in (("0\n3\n", "entry 2 is '3'; expected 0 to 2"), ("a", "'a'"), ("", "empty")):
        path.write_text(text)
        assert_user_error(message, read_labels, path, 3)
    assert_user_error("cannot be read", read_labels, tmp_path / "none", 3)


IMAGES = np.zeros((3, 4, 4, 3), np.uint8)
WRONG_ARCHIVES = [
    ({"arr_0": IMAGES.astype(np.float32)}, "float32; save uint8 images"),
    ({"arr_0": IMAGES[..., 0]}, "expected"),
    ({"arr_0": IMAGES.transpose(0, 3, 1, 2)}, "expected"),
    ({"arr_0": IMAGES, "arr_1": np.zeros(2)}, "one class number per image"),
    ({"mu": np.zeros(3)}, "holds no arr_0, only mu"),
]


@pytest.mark.parametrize(("arrays", "message"), WRONG_ARCHIVES)
def test_archives_of_something_else_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    assert_user_error(message, NpzImages, tmp_path / "x.npz")
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
    message = r"2\.png is not a readable image \(no image format that Pillow supports\)"
    assert_user_error(message, lambda: list(images.batches([range(2, 3)])))
    first = images.identity()["sha256"]
    assert first == DirectoryImages(tmp_path).identity()["sha256"]
    Image.new("RGB", (5, 4), (9, 0, 0)).save(tmp_path / "0.png")
    assert DirectoryImages(tmp_path).identity()["sha256"] != first


def test_many_images_by_loader_processes(tmp_path):
    for i in range(300):
        Image.new("RGB", (4, 4), (i % 256, i // 256, 0)).save(tmp_path / f"{i:03d}.png")
    batches = [images for images, _, _ in DirectoryImages(tmp_path).batches([range(0, 128), range(128, 300)])]
    assert [len(images) for images in batches] == [128, 172]
    assert [int(image[0, 0, 0]) + 256 * int(image[1, 0, 0]) for image in torch.cat(batches)] == list(range(300))


MISTAKES = [
    (["--run", "nowhere"], "no checkpoint"),
    (["--num", "0"], "--num is 0"),
    (["--num", "3"], "there are 3 images to be scored; these metrics need 4 or more"),
    (["--reference", "few.npz"], "there are 2 images in the reference; these metrics need 4 or more"),
    (["--reference", "one.npz"], "at least two images; the data gave 1"),
    (["--samples", "few.npz"], "there are 2 images to be scored"),
    (["--samples", "few.npz", "--weights", "x", "--seeds=2"], "--weights, --seeds cannot be combined with --samples;"),
    (["--weights", "x", "--raw", "true"], "command line: --raw cannot be combined with --weights"),
    (["--weights", "x", "--checkpoint", "y"], "command line: --checkpoint cannot be combined with --weights"),
    (["--seeds", "0"], "--seeds is 0"),
    (["--feature_batch", "0"], "--feature_batch is 0"),
    (["--classes", "purple"], "there is no class 'purple'"),
    (["--classes", "red", "--labels", "x"], "exclude each other"),
    (["--labels", "x", "--num=5"], "command line: --num cannot be combined with --labels"),
    (["--reference", "nowhere"], "nowhere does not exist"),
    (["--samples", "nowhere.npz"], "nowhere.npz does not exist"),
    (["--record", "a/b"], "--record is 'a/b'"),
    (["--weights", "no/where/at/all"], "does not exist"),
    (["--images.image_size", "8", "--images.resize", "8"], "4x4 pixels, those of the reference 8x8"),
    (["--trainer.devices", "0"], "trainer.devices is 0"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_mistakes_are_one_line_and_nothing_is_written(workspace, config, capsys, options, message):
    for name, count in (("one", 1), ("few", 2)):
        np.savez(workspace / f"{name}.npz", arr_0=np.zeros((count, 4, 4, 3), np.uint8))
    before = sorted((workspace / "runs").rglob("*"))
    options = [workspace / word if word in ("one.npz", "few.npz") else word for word in options]
    # Few images, where that is not the mistake.
    few = [] if {"--num", "--samples", "--labels"} & set(options) else ["--num", "5"]
    assert message in refused(capsys, "evaluate", config, *options, *few)
    assert sorted((workspace / "runs").rglob("*")) == before


def test_over_seeds():
    records = [{"metrics": {"fid_5k": v}, "protocol": {"sampling": {"seed": s}}} for s, v in enumerate((1.0, 2.0, 3.0))]
    record = over_seeds(records)
    assert (record["metrics"], record["std"], record["seeds"]) == ({"fid_5k": 2.0}, {"fid_5k": 1.0}, [0, 1, 2])
    assert record["protocol"]["sampling"]["seed"] == [0, 1, 2] and records[0]["protocol"]["sampling"]["seed"] == 0
    single = over_seeds(records[:1])
    assert (single["metrics"], single["std"], single["seeds"]) == ({"fid_5k": 1.0}, {"fid_5k": 0.0}, [0])
    assert single["protocol"] == records[0]["protocol"]
