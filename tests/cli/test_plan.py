"""`plan`: estimates from a configuration, with and without data and devices."""

import json
import re

import pytest
import torch
import yaml
from integration.tiny import write_experiment

from aim_lightning.cli.main import main
from aim_lightning.modules.aim import AiMModule
from aim_lightning.runs.directory import newest_checkpoint

pytestmark = pytest.mark.usefixtures("own_signals")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("plan"))


@pytest.fixture
def plan(capfd):
    def call(config, *options):
        code = main(["plan", "--config", str(config), *map(str, options)])
        out, err = capfd.readouterr()
        return code, dict(re.findall(r"^  (\S.*?)\s{2,}(.*)$", out, re.M)), err

    return call


def test_measured_in_a_few_steps_without_touching_the_run(plan, experiment):
    code, lines, err = plan(experiment, "--steps", 4)
    assert code == 0, err
    assert lines["parameters"].startswith("24,088 trained")
    assert lines["global batch"] == "8 = 1 devices x 8 images x 1 accumulation steps"
    assert lines["steps"] == "22 (3.1 epochs of 61 images)"
    assert "measured on one CPU" in lines["images/s"] and "of the whole process, measured" in lines["memory per device"]
    assert "61 images x 2 view(s) x 4 codes" in lines["token shards"]
    window = r"warn \d+ s before the limit: .* x 1\.5 .*; a kill without warning takes back"
    assert re.match(window, lines["requeue window"])
    assert not (experiment.parent / "runs").exists()


@pytest.mark.parametrize("devices", [1, 2])
def test_the_cuda_graph_is_measured_only_if_the_training_uses_it(plan, experiment, monkeypatch, devices):
    measured = []
    monkeypatch.setattr(AiMModule, "on_train_start", lambda module: measured.append(module.cuda_graph))
    code, lines, err = plan(experiment, "--steps", 1, "--trainer.devices", devices)
    assert code == 0 and lines["global batch"].startswith(f"8 = {devices} devices x {8 // devices} images"), err
    assert measured == [devices == 1]


@pytest.mark.parametrize(("devices", "count"), [("2", 2), ("0,1", 2), ("[0, 1, 2, 3]", 4), ("3,", 1)])
def test_devices_are_counted_as_lightning_reads_them(plan, experiment, devices, count):
    code, lines, err = plan(experiment, "--steps", 0, "--trainer.devices", f"'{devices}'" if count == 2 else devices)
    assert code == 0 and f"= {count} devices x" in lines["global batch"], err


def test_missing_data_are_simulated(plan, experiment, tmp_path):
    options = ("--data.path", tmp_path / "none", "--steps", 2)
    code, _, err = plan(experiment, *options)
    assert code == 2 and "give --rows NUMBER" in err and not (tmp_path / "none").exists()
    code, lines, _ = plan(experiment, *options, "--rows", 500, "--views", 10)
    assert code == 0 and "500 images x 10 view(s)" in lines["token shards"] and "measured" in lines["images/s"]


def test_fields_of_the_network_may_have_their_defaults(plan, experiment, tmp_path):
    config = tmp_path / "defaults.yaml"
    config.write_text(re.sub(r", num_tokens: 4|, num_classes: 3", "", experiment.read_text()))
    options = ("--data.path", tmp_path / "none", "--steps", 1, "--rows", 500, "--views", 1)
    code, lines, err = plan(config, *options)
    assert code == 0, err
    assert "500 images x 1 view(s) x 256 codes" in lines["token shards"] and "measured" in lines["images/s"]


def test_a_given_speed_and_number_of_devices(plan, root):
    experiment = root / "experiments" / "imagenet256_aim_b.yaml"
    options = ("--rows", 1281167, "--devices", 8, "--images_per_s", 1000, "--views", 10)
    code, lines, err = plan(experiment, *options)
    assert code == 0, err
    assert lines["parameters"] == "147,622,080 trained"
    assert lines["global batch"] == "2,048 = 8 devices x 256 images x 1 accumulation steps"
    if not torch.cuda.is_available():
        assert lines["micro-batch"].startswith("256 images per device (auto: about 29.7 of 80.0 GB on an assumed GPU")
    assert lines["steps"] == "187,500 (300.0 epochs of 1,281,167 images)"
    for ends, steps in ((("100", "300"), "100 ("), (("1000000", "2"), "1,250 (2.0 epochs")):  # the earlier end counts
        limits = ("--trainer.max_steps", ends[0], "--trainer.max_epochs", ends[1])
        _, limited, _ = plan(experiment, *options, *limits)
        assert limited["steps"].startswith(steps)
    assert lines["time"].startswith("106.7 h without validation; 853.3 h over all devices")
    assert lines["token shards"].startswith("6.60 GB") and lines["checkpoints"].startswith("7.09 GB")
    code, slow, _ = plan(experiment, *options[:-1], 10, "--images_per_s", 10)
    assert "cluster.signal_lead 120 s: TOO SHORT" in slow["requeue window"]  # a step takes 205 s
    assert "not measured" in lines["memory per device"] and lines["memory per device"].startswith("2.75 GiB")


def test_a_time_limit_replaces_the_steps_that_it_cuts_off(plan, experiment):
    def planned(*options):
        _, lines, err = plan(experiment, "--trainer.max_time", "00:00:30:00", *options)
        return lines, err

    lines, _ = planned("--images_per_s", 8 * 8 / 3600)  # 4 of 22 steps in the half hour
    assert "steps" not in lines
    assert lines["time limit"] == "30.0 min of trainer.max_time before step 22 (3.1 epochs of 61 images)"
    assert lines["time"].startswith("30.0 min with validation, at most 4 steps; 30.0 min over all devices")
    lines, _ = planned("--images_per_s", 8)
    assert lines["steps"].startswith("22 (") and lines["time"].startswith("22.0 s without validation")
    lines, _ = planned("--steps", 0)
    assert lines["time limit"].startswith("30.0 min of trainer.max_time or step 22 (")
    lines, _ = planned("--images_per_s", 8, "--trainer.max_steps", -1)
    assert lines["time limit"] == "30.0 min of trainer.max_time"
    _, err = planned("--trainer.max_steps", -1, "--trainer.max_time", "null")
    assert "the training has no end: set trainer.max_steps, trainer.max_epochs or trainer.max_time" in err


@pytest.mark.parametrize(("micro_batch", "devices"), [(256, 8), (32, 1), (64, 8)])
def test_stored_rates_of_a_published_size(plan, root, micro_batch, devices):
    """A micro-batch below the measured ones takes the rate of the smallest."""
    options = ("--rows", 1281167, "--devices", devices, "--steps", 0, "--data.max_device_batch_size", micro_batch)
    code, lines, err = plan(root / "experiments" / "imagenet256_aim_b.yaml", *options)
    assert code == 0, err
    table = yaml.safe_load((root / "aim_lightning/cli/plan/rates.yaml").read_text())
    size = max(micro_batch, 64)
    # Several GPUs train without a CUDA graph, which matters at 64 images.
    rates = table["without_graph" if size == 64 and devices > 1 else "measured"]["H200"]["AiM-B"]
    h200, h100 = rates[size] * devices, rates[size] * devices * 0.83
    assert lines["images/s, H200"].startswith(f"{h200:,.1f} (measured on one H200 with {size} images")
    assert lines["images/s, H100"].startswith(f"{h100:,.1f} (estimated as 0.83 of H200")
    for gpu, rate in (("H200", h200), ("H100", h100)):
        assert lines[f"time, {gpu}"].startswith(f"{187500 * 2048 / rate / 3600:,.1f} h without validation")


def test_stored_rates_are_rows_of_their_record(root):
    table = yaml.safe_load((root / "aim_lightning/cli/plan/rates.yaml").read_text())
    measured = {
        (row["part"], row["model"], row["batch"], round(row["images_per_s"]))
        for run in json.loads((root / table["record"]).read_text())["runs"]
        for row in run["rows"]
        if row["backend"] == "triton" and "images_per_s" in row
    }
    for part, rates in (("fit", table["measured"]["H200"]), ("kernels", table["without_graph"]["H200"])):
        assert {(part, model, *rate) for model, sizes in rates.items() for rate in sizes.items()} <= measured


@pytest.mark.parametrize("options", [("--model.backend", "torch"), ("--model.network.n_layer", 12)])
def test_no_rate_is_stored_for_other_trainings(plan, root, options):
    experiment = root / "experiments" / "imagenet256_aim_b.yaml"
    _, lines, _ = plan(experiment, "--rows", 1281167, "--devices", 8, "--steps", 0, *options)
    assert lines["images/s"].startswith("unknown: give --images_per_s")


def test_checkpoints_that_evaluations_in_training_keep_are_counted(plan, root):
    evaluation = ("--config", root / "configs/callbacks/training_evaluation.yaml")
    kept = []
    for options in ((), evaluation, (*evaluation, "--callbacks.training_evaluation.keep_best", 3)):
        speed = ("--rows", 1281167, "--devices", 8, "--images_per_s", 1000)
        _, lines, _ = plan(root / "experiments" / "imagenet256_aim_b.yaml", *options, *speed)
        kept.append(int(re.search(r"(\d+) kept", lines["checkpoints"])[1]))
    assert kept == [kept[0], kept[0] + 2, kept[0] + 3]


def test_unknown_values_are_named(plan, root):
    code, lines, _ = plan(root / "experiments" / "imagenet256_tokenizer.yaml", "--rows", 1281167, "--steps", 0)
    assert code == 0 and lines["images/s"].startswith("unknown: give --images_per_s")
    assert "256 codes" in lines["token shards"] and "whose time is unknown" in lines["requeue window"]


def test_a_batch_that_does_not_divide_is_an_error(plan, experiment):
    code, _, err = plan(experiment, "--devices", 3, "--images_per_s", 1)
    assert code == 2 and "does not divide over 3 devices" in err


def test_the_size_of_a_checkpoint_is_that_of_a_real_one(plan, experiment):
    _, lines, _ = plan(experiment, "--images_per_s", 1)
    expected = float(re.search(r"([\d.]+) kB each", lines["checkpoints"])[1]) * 1e3
    assert main(["fit", "--config", str(experiment), "--run", "real", "--trainer.max_steps", "1"]) == 0
    real = newest_checkpoint(experiment.parent / "runs" / "tiny" / "real").stat().st_size
    assert expected < real < 1.5 * expected  # names and counters have a share in so small a network
