"""Test scripts of experiments/ and benchmarks/: the demo's table, run.sh of the tokenizer, the interruptions."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest
import torch
from conftest import ROOT, python
from PIL import Image

RUN = "experiments/fashion_mnist_tokenizer/run.sh"
# Replaces the interpreter and records the call; `fit` creates the run's directory and lasts until `slow` is removed.
STUB = """#!/usr/bin/env bash
echo "$*" >>calls
if [ "$3" = fit ]; then
  run=$(grep -o -- '--run [a-z]*' <<<"$*" | cut -d' ' -f2)
  mkdir -p "runs/fashion_mnist_tokenizer/$run"
  while [ -e slow ]; do sleep 0.1; done
fi
"""


def demo_table(runs, num=500):
    return python(ROOT / "experiments/demo_table.py", "--runs_root", runs, "--num", num)


@pytest.fixture
def demo_runs(tmp_path):
    # `make evaluate` with another number of samples must not get into the table.
    aim = {"val/bits_per_code": 2.5, "fd_effnet_lite0_300": 1.0, "class_agreement_2k_real": 1.0}
    for suffix, distance, agreement in (("", 400.0, 0.72), ("_untrained", 2000.0, 0.1), ("_real", 60.0, 0.9)):
        aim |= {f"fd_effnet_lite0_500{suffix}": distance, f"class_agreement_500{suffix}": agreement}
    for stage, metrics in (("tokenizer", {"val/psnr": 22.5, "val/codebook_usage": 0.75}), ("aim", aim)):
        directory = tmp_path / f"demo_{stage}" / "main"
        directory.mkdir(parents=True)
        (directory / "results.json").write_text(json.dumps({"metrics": metrics}))
    configuration = {"model": {"init_args": {"network": {"vocab_size": 512}}}}
    (tmp_path / "demo_aim/main/config.yaml").write_text(json.dumps(configuration))
    return tmp_path


def test_the_table_has_one_number_of_samples_and_figures_of_both_stages(demo_runs):
    result = demo_table(demo_runs)
    assert result.returncode == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "fd_effnet_lite0_500 400.0 2000.0 60.0" in lines and "class_agreement_500 0.720 0.100 0.900" in lines
    assert "codebook usage 75% of 512" in lines
    assert "validation loss 2.50 bits per code of 9 (to reach: at most 4)" in lines
    assert "agreement against real 0.80 (to reach: at least 0.85)" in lines


def test_a_missing_metric_or_run_is_one_line(demo_runs):
    result = demo_table(demo_runs, 300)
    assert result.returncode == 1 and "fd_effnet_lite0_300_untrained; run make validate" in result.stderr
    for name in ("demo_aim/main/config.yaml", "demo_tokenizer/main/results.json"):
        (demo_runs / name).unlink()
        result = demo_table(demo_runs)
        assert result.returncode == 1 and result.stdout == "" and result.stderr.count("\n") == 1
        assert f"{name} does not exist" in result.stderr


def test_seconds_of_the_tokenizer_experiment_are_those_of_training_however_often_it_stopped(tmp_path):
    (tmp_path / RUN).parent.mkdir(parents=True)
    shutil.copy(ROOT / RUN, tmp_path / RUN)
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    runs, slow = tmp_path / "runs/fashion_mnist_tokenizer", tmp_path / "slow"

    def start(*options):
        environment = {**os.environ, "PYTHON": "./python"}
        return subprocess.Popen(["bash", RUN, *options], cwd=tmp_path, env=environment, start_new_session=True)

    def state():
        """Return the seconds of both runs and the number of trainings."""
        files = [runs / name / "fit_seconds" for name in ("adversarial", "plain")]
        seconds = [[int(word) for word in file.read_text().split()] if file.exists() else [] for file in files]
        return *seconds, (tmp_path / "calls").read_text().count("aim_lightning fit ")

    slow.touch()
    process = start()
    while not (runs / "adversarial").exists():
        time.sleep(0.05)
    time.sleep(2)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(10) != 0
    (seconds,), plain, _ = state()
    assert seconds >= 1 and not plain
    slow.unlink()
    assert start().wait(20) == 0
    before = state()
    assert (len(before[0]), len(before[1])) == (2, 1)
    assert start().wait(20) == 0 and state() == before  # everything is finished
    assert start("--trainer.max_steps", "9").wait(20) == 0 and len(state()[1]) == 2  # other options: trained again
    assert "tokenizer_report.py runs/fashion_mnist_tokenizer adversarial plain" in (tmp_path / "calls").read_text()


def test_only_common_steps_of_two_trainings_are_compared(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import interruptions

    curve = {step: {"rows": [step], "loss": 1.0} for step in (1, 2, 3)}
    assert interruptions.rows_agree({1: curve[1]}, curve) and interruptions.rows_agree(curve, {3: curve[3]})
    assert not interruptions.rows_agree(curve, {**curve, 2: {"rows": [7]}})
    assert interruptions.rows_agree(curve, {}) is None and interruptions.distance(curve, {}) == {}


def test_the_training_benchmark_times_steps_inside_fit(monkeypatch, own_signals):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import training

    network, data = "--model.init_args.network.", "--data.init_args."
    tiny = ["--trainer.accelerator", "cpu", f"{network}d_model", "64", f"{network}n_layer", "1"]
    sizes = [f"{data}global_batch_size", "4", f"{data}max_device_batch_size", "2"]
    rows = [training.measure_fit("AiM-B", "torch", 2, "none", 3, tiny)]
    rows += [training.measure_fit("AiM-B", "torch", "shipped", "none", 4, tiny + sizes)]
    assert [(row["batch"], row["global_batch"], row["timed_steps"]) for row in rows] == [(2, 2, 3), (2, 4, 1)]
    assert all(row["images_per_s"] == pytest.approx(2e3 / row["milliseconds"], rel=0.01) for row in rows)
    assert all(row["host_milliseconds"] > 0 and "mfu" not in row for row in rows)


def test_ratios_of_the_training_benchmark_are_to_kernels_of_the_same_micro_batch(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import training

    cells = ("fit triton 64 90", "kernels triton 64 100", "kernels mamba_ssm 64 50", "fit triton 256 100")
    rows = [dict(zip(("part", "backend", "batch", "images_per_s"), cell.split(), strict=True)) for cell in cells]
    rows = [row | {"model": "AiM-B", "images_per_s": int(row["images_per_s"])} for row in rows]
    training.add_ratios(rows)
    ratios = [(row.get("ratio_to_mamba_ssm"), row.get("ratio_to_kernels")) for row in rows]
    assert ratios == [(1.8, 0.9), (2.0, None), (None, None), (None, None)]


def test_rows_of_the_training_benchmark_have_goals_and_their_share_of_measured_products(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import training

    cells = (("fit", "AiM-B", 64), ("fit", "AiM-1B", 256), ("fit", "AiM-B", 96), ("kernels", "AiM-B", 64))
    expected = {
        "NVIDIA H200": [(397, 1500, 1800), (None, 200, 230), (None,) * 3, (None,) * 3],
        "NVIDIA H100 80GB HBM3": [(None, 1245, 1494), (None, 166, 191), (None,) * 3, (None,) * 3],
        "NVIDIA A100-SXM4-80GB": [(None,) * 3] * 4,
    }
    for machine, values in expected.items():
        rows = [{"part": part, "model": model, "batch": batch, "tflops": 300.0} for part, model, batch in cells]
        training.add_goals(rows, 800, machine)
        assert [tuple(row.get(name) for name in training.GOAL_COLUMNS) for row in rows] == values
        assert {row["of_products"] for row in rows} == {0.375}
    assert training.product_rate(torch.device("cpu"), size=64, repeats=2) > 0


@pytest.mark.filterwarnings("ignore:FrechetDistance")
def test_the_benchmark_of_metrics_separates_shifted_samples(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import metric_spread

    features = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    pools = {"complete": features[:500], "without_class": features[:500] + 1}
    rows = metric_spread.measure(pools, features[500:], [50, 400], 3)
    assert [(row["metric"], row["images"]) for row in rows] == [
        (name, count) for name in ("fd_effnet_lite0", "mind_effnet_lite0") for count in (50, 400)
    ]
    assert all(row["mean_without_class"] > row["mean"] > 0 and row["separation"] > 3 for row in rows)
    metric_spread.plot(rows, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size[0] > 1000
    assert metric_spread.summary({"complete": [1.0, 3.0], "without_class": [6.0, 6.0]}) == pytest.approx(
        {"mean": 2.0, "deviation": 0.5**0.5, "mean_without_class": 6.0, "separation": 4 / 2**0.5}
    )
