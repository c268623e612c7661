"""`suite`: variations and seeds of an experiment, resume after a kill, and the table."""

import csv
import os
import re
import signal
import statistics
import time
from dataclasses import replace

import pytest
from conftest import ROOT, start_python
from integration.tiny import scalars, write_experiment

from aim_lightning.cli import processes
from aim_lightning.cli.arguments import Arguments
from aim_lightning.cli.plan.report import meta_module
from aim_lightning.cli.suite import read_suite
from aim_lightning.evaluation.report.suite import mean_curves
from aim_lightning.runs.directory import list_checkpoints, step_of
from aim_lightning.runs.results import read_results

PROGRAMS = ROOT / "tests/cli/slurm_programs"
SUITES = sorted((ROOT / "experiments/suites").glob("*.yaml"))
SUITE = """
experiment: ../tiny.yaml
variations:
  one: {model.label_dropout: 0.1}
  two: {include: [wide.yaml]}
overrides: {trainer.max_steps: 8}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the directory with the tiny experiment."""
    return write_experiment(tmp_path_factory.mktemp("suite")).parent


@pytest.fixture
def write(tiny):
    """Return the function that writes a suite and returns its path."""

    def call(text, name):
        (tiny / "suites").mkdir(exist_ok=True)
        (tiny / "suites/wide.yaml").write_text("model: {init_args: {network: {d_model: 48}}}\n")
        path = tiny / "suites" / f"{name}.yaml"
        path.write_text(text)
        return path

    return call


def test_variations_grids_and_seeds_are_combined(write):
    grid = "grid: {model.network.n_layer: [1, 3], model.optimizer.schedule: [constant]}\nseeds: [3, 5]\n"
    path = write(SUITE + grid, "s")
    suite = read_suite(path, Arguments(overrides=[("trainer.max_steps", "9")]))
    runs = {item.directory.run: item for item in suite.runs()}
    points = [(name, layers, seed) for name in ("one", "two") for layers in (1, 3) for seed in (3, 5)]
    assert list(runs) == [f"s-{name}-n_layer{layers}-scheduleconstant-{seed}" for name, layers, seed in points]
    values = runs["s-two-n_layer3-scheduleconstant-5"].config.values
    model = values["model"]["init_args"]
    assert (model["network"]["d_model"], model["network"]["n_layer"], model["label_dropout"]) == (48, 3, 0.3)
    assert (model["seed"], values["experiment"]) == (5, "tiny")
    assert values["trainer"]["max_steps"] == 9, "the command line wins"
    assert runs["s-one-n_layer1-scheduleconstant-3"].config.values["model"]["init_args"]["label_dropout"] == 0.1


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("experiment: ../none.yaml", "none.yaml does not exist"),
        ("variations: {a: {}}", "experiment is missing"),
        (SUITE + "seed: [1]", "seed: unknown key; did you mean seeds?"),
        (SUITE + "seeds: [1, 1]", "seeds is [1, 1]; give different whole numbers"),
        (SUITE + "grid: {model.label_dropout: 0.1}", "grid is {'model.label_dropout': 0.1}; expected dict[str, list["),
        (SUITE + "grid: {model.label_dropout: []}", "model.label_dropout is empty; add a value, or remove the key"),
        (SUITE + "seeds: ['1']", "seeds is ['1']; give different whole numbers"),
        (SUITE + "seeds: [-1]", "seeds is [-1]; give different whole numbers"),
        (SUITE + "guidance: ['2']\nevaluate: {num: 50}", "guidance is ['2']; give different positive numbers"),
        (SUITE + "seeds: [x]", "seeds is ['x']; expected list[int]"),
        ("experiment: ../tiny.yaml\nvariations: {a: 3}", "variations is {'a': 3}; expected dict[str, dict["),
        (SUITE + "grid: {model.label_dropout: [0.1, 0.1]}", "variation one-label_dropout0.1 occurs twice"),
        (SUITE + "guidance: [1, 1]\nevaluate: {num: 50}", "guidance is [1, 1]; give different positive numbers"),
        (SUITE + "guidance: [1]", "guidance has no effect without evaluate"),
        (SUITE + "power_law: {x: val/loss}", "power_law is {'x': 'val/loss'}; write {x: [parameters_in_millions]"),
        (SUITE.replace("two:", "one:"), "key one occurs twice"),
        (
            SUITE.replace("label_dropout", "label_dropot"),
            "variation one: model.init_args.label_dropot is not an option of",
        ),
        (SUITE.replace("one: {model.label_dropout: 0.1}", "one: {run: x}"), "variation one: run is set by the suite"),
        (SUITE.replace("max_steps: 8", "max_steps: 8, seed_everything: 3"), "seed_everything is set by the suite"),
        (SUITE + "grid: {seed_everything: [1, 2]}", "seed_everything is set by the suite"),
        (SUITE.replace("[wide.yaml]", "wide.yaml"), "variation two: include is 'wide.yaml'; it must be a list"),
        ("experiment: ../tiny.yaml\nvariations: {}", "variations is empty"),
        (SUITE + "power_law: {x: [[a]], y: val/loss}", "power_law is {'x': [['a']], 'y': 'val/loss'}; expected"),
        ("experiment: ../tiny.yaml\npower_law: {x: [a], y: b}", "power_law needs several variations"),
        (SUITE + "evaluate: {nmu: 5}", "evaluate: unrecognized arguments: --nmu=5; did you mean --num?"),
        (SUITE + "evaluate: {nearest: 3}\nguidance: [1]", "sweep: unrecognized arguments: --nearest=3"),
    ],
)
def test_mistakes_are_one_line_before_anything_trains(write, fail, tiny, text, error):
    path = write(text, "wrong")
    message = fail("suite", path)
    assert error in message and "wrong.yaml" in message
    assert not (tiny / "runs/tiny").exists() or not list((tiny / "runs/tiny").glob("wrong-*"))


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_recorded_suites_are_valid_and_end_with_a_validation(path):
    for item in replace(read_suite(path, Arguments()), seeds=[0]).runs():
        trainer = item.config.trainer
        assert "max_time" in trainer or trainer["max_steps"] % trainer["val_check_interval"] == 0


def test_sizes_of_the_scaling_suite_have_equal_compute():
    runs = read_suite(ROOT / "experiments/suites/scaling_compute.yaml", Arguments()).runs()
    networks = [meta_module(item.config).network for item in runs]
    flops = [n.flops_per_image() * item.config.trainer["max_steps"] for n, item in zip(networks, runs, strict=True)]
    assert len(flops) == 5 and max(flops) < 1.03 * min(flops)
    sizes = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert sizes[0] < 0.5e6 and sizes[-1] > 30e6 and sizes == sorted(sizes)


def test_an_unknown_suite_is_named(fail):
    assert "experiments/suites/dmo.yaml does not exist; did you mean demo?" in fail("suite", "dmo")


def plan_rows(text):
    """Return name of the run, limit, progress and hours of every row that `suite --dry` prints."""
    rows = [re.split(r" {2,}", line) for line in text.splitlines() if "/runs/" in line]
    return [(path.rpartition("/")[2], *values) for path, *values in rows]


def test_the_plan_shows_limits_and_hours_without_training(write, succeed, tiny):
    path = write(SUITE + "seeds: [0, 1]", "plan")
    names = ["plan-one-0", "plan-one-1", "plan-two-0", "plan-two-1"]
    text = succeed("suite", path, "--dry", "--images_per_s", 8 * 8 / 3600)
    assert plan_rows(text) == [(name, "8 steps", "0 steps", "1.000") for name in names]
    assert "4 runs: 4.000 device hours left, without validation and evaluation" in text
    limited = ["suite", path, "--dry", "--trainer.max_time", "00:00:30:00"]
    text = succeed(*limited, "--images_per_s", 8 * 8 / 3600)
    assert plan_rows(text) == [(name, "1800 s", "0 s", "0.500") for name in names], "the time ends before the steps"
    assert "4 runs: 2.000 device hours left, without evaluation; seconds include validation" in text
    text = succeed(*limited, "--images_per_s", 4 * 8 * 8 / 3600)
    assert plan_rows(text)[0][1:] == ("8 steps", "0 steps", "0.250"), "the steps end before the time"
    assert "4 runs: at most 2.000 device hours left" in succeed(*limited, "--steps", 0), "the time needs no rate"
    assert not list((tiny / "runs").glob("tiny/plan-*"))


def test_the_plan_counts_the_seconds_of_a_stopped_run(write, succeed, tiny):
    path = write(SUITE.replace("max_steps: 8", 'max_steps: 1000000, trainer.max_time: "00:00:00:02"'), "timed")
    options = "--run timed-one-0 --seed_everything 0 --model.label_dropout 0.1 --trainer.max_steps 1000000"
    succeed("fit", "--config", tiny / "tiny.yaml", *options.split(), "--trainer.max_time", "00:00:00:01")
    rows = plan_rows(succeed("suite", path, "--dry", "--steps", 0))
    assert rows == [("timed-one-0", "2 s", "1 s", "0.000"), ("timed-two-0", "2 s", "0 s", "0.001")]


def test_a_killed_suite_continues_and_tabulates_seeds(write, tiny, succeed):
    """Kill the suite during its second run: the first run is kept as it is, and the curves are those without a kill."""
    path = write(SUITE.replace("  two: {include: [wide.yaml]}\n", "") + "seeds: [0, 1]\n", "s")
    slow = ["--callbacks.checkpoints.every_n_steps", "2", "--trainer.val_check_interval", "4"]
    process = start_python("-m", "aim_lightning", "suite", path, *slow)
    second, runs = tiny / "runs/tiny/s-one-1", tiny / "runs/tiny"
    while not list_checkpoints(second) and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert not (path.parent / "s").exists(), "no table of an incomplete suite"
    first = {file: file.stat().st_mtime_ns for file in (runs / "s-one-0").rglob("*") if file.is_file()}
    assert first
    out = succeed("suite", path, *slow)
    assert "2 runs, 1 complete" in out
    assert {file: file.stat().st_mtime_ns for file in first} == first, "a complete run is not touched"
    assert step_of(list_checkpoints(second)[0]) == 8
    assert [step for step, _ in scalars(second)["val/loss"]] == [4, 8]
    rows = list(csv.DictReader((path.parent / "s/results.csv").open()))
    losses = [read_results(runs / f"s-one-{seed}/results.json")["metrics"]["val/loss"] for seed in (0, 1)]
    assert [row["name"] for row in rows] == ["one"] and rows[0]["val/loss_count"] == "2"
    assert float(rows[0]["val/loss"]) == pytest.approx(statistics.fmean(losses))
    assert float(rows[0]["val/loss_std"]) == pytest.approx(statistics.stdev(losses)) and losses[0] != losses[1]
    assert 0.01 < float(rows[0]["parameters_in_millions"]) < 0.1
    table = (path.parent / "s/table.md").read_text()
    assert "(2)" in table and "Runs: one (2). Steps: 8." in table
    assert (path.parent / "s/curves.png").read_bytes().startswith(b"\x89PNG")


def test_slurm_gets_one_array_of_the_incomplete_runs(write, tiny, succeed, fail, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", f"{PROGRAMS}:{os.environ['PATH']}")
    monkeypatch.setenv("STATE", "")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    path, runs = write(SUITE + "seeds: [4, 7]\n", "array"), tiny / "runs/tiny"
    assert "#SBATCH --array=0,1,2,3%2" in succeed("suite", path, "--slurm", "--dry", "--jobs", 2)
    assert not list(runs.glob("array*"))
    text = f"--config {tiny}/tiny.yaml --run array-one-4 --trainer.max_steps 8 --model.label_dropout 0.1"
    succeed("fit", *text.split(), "--seed_everything", 4)  # the first run is complete
    message = fail("suite", path, "--slurm", "--model.label_dropout", 0.4)
    assert "label_dropout was 0.1, is 0.4; rename the suite, or move the run away" in message
    assert "runs array-one-7 … array-two-7" in succeed("suite", path, "--slurm")
    assert "#SBATCH --array=1,2,3\n" in (runs / "array/job.sbatch").read_text()
    assert (tmp_path / "calls").read_text().count("--parsable") == 1
    frozen = (runs / "array/job-3.yaml").read_text()
    assert "run: array-two-7" in frozen and "d_model: 48" in frozen and "seed_everything: 7" in frozen
    monkeypatch.setenv("STATE", "PENDING")
    monkeypatch.setenv("ARRAY", "ArrayJobId=41 ArrayTaskId=1-3")
    run = ["--config", tiny / "tiny.yaml", "--run", "array-two-7"]
    assert f"job 41_3 (a task of the array of {runs}/array): PENDING" in succeed("slurm", "status", *run)
    assert "array has job 41_1-3 already (PENDING)" in fail("suite", path, "--slurm")
    succeed("slurm", "cancel", *run)
    assert "scancel 41_3\n" in (tmp_path / "calls").read_text()


def test_an_array_has_one_experiment(write, fail, monkeypatch):
    message = fail("suite", write(SUITE.replace("0.1}", "0.1, experiment: x}"), "mixed"), "--slurm")
    assert "mixed-two-0: experiment was 'x', is 'tiny', but the tasks of an array share one job script" in message


def test_runs_are_trained_then_evaluated_and_failures_are_named(write, fail, monkeypatch):
    calls = []
    monkeypatch.setattr(processes, "run_tasks", lambda *words: calls.append(words) or {"s2-two-0": 3})
    message = fail("suite", write(SUITE + "evaluate: {num: 50, keep_images: false}", "s2"), "--jobs", 2)
    assert "1 of 2 runs failed: s2-two-0 (exit code 3); see suite.log in the run directories" in message
    ((tasks, jobs, logs),) = calls
    assert jobs == 2 and logs["s2-one-0"].parts[-2:] == ("s2-one-0", "suite.log")
    fit, evaluate = tasks["s2-one-0"]
    assert fit[0] == "fit" and evaluate == ["evaluate", *fit[1:], "--num=50", "--keep_images=False"]


def test_tasks_run_concurrently_and_a_failure_stops_its_own_task(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "visible_gpus", lambda: ["3", "5"])
    logs = {name: tmp_path / name / "suite.log" for name in "abc"}
    tasks = {"a": [["--version"], ["nonsense"], ["--version"]], "b": [["--version"]], "c": [["--version"]]}
    assert processes.run_tasks(tasks, 2, logs) == {"a": 2}
    assert "there is no command 'nonsense'" in logs["a"].read_text().splitlines()[-1]
    assert all(logs[name].read_text().startswith("aim-lightning ") for name in "abc")


def test_processes_share_a_gpu_where_memory_allows():
    def number(training, free):
        return processes.processes_per_gpu(training and training * 10**9, free and free * 10**9)

    assert [number(6, free)[0] for free in (9, 12, 25, 34, 140)] == [1, 1, 2, 3, 4]
    assert "the largest needs about 10.0 of 25.0 GB" in number(6, 25)[1]
    assert number(None, 140) == (1, "the memory of a network is unknown")
    assert number(6, None) == (1, "the free memory of the GPUs is unknown")


def test_free_memory_is_that_of_the_fullest_gpu(tmp_path, monkeypatch):
    def report(text):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n[ $1 = --id=0,3 ] && printf '{text}'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        return processes.free_memory(["0", "3"])

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert report(r"1000, Default\n900, Default\n") == 900 << 20
    assert report(r"1000, Default\n900, Exclusive_Process\n") is None
    assert report(r"[N/A], Default\n900, Default\n") is None
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert processes.free_memory(["0"]) is None


def test_the_largest_training_limits_the_default(write, fail, monkeypatch):
    calls = []
    monkeypatch.setattr(processes, "run_tasks", lambda *words: calls.append(words[1]) or {"x": 3})
    monkeypatch.setattr(processes, "visible_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(processes, "free_memory", lambda gpus: 9 * 10**9)
    wide = SUITE.replace("include: [wide.yaml]", "model.network.d_model: 4096")  # 0.1 GB of weights per layer
    gpt = SUITE.replace("wide.yaml", f"{ROOT}/configs/model/gpt_tiny.yaml")
    for text in (SUITE, wide, gpt):
        fail("suite", write(text, "memory"))
    assert calls == [4, 2, 4]


def test_curves_are_means_at_common_steps():
    runs = [{"val/loss": [(1, 2.0), (2, 4.0)], "train/loss": [(1, 1.0)]}, {"val/loss": [(1, 4.0)]}]
    assert mean_curves(runs) == {"val/loss": [(1, 3.0, pytest.approx(2**0.5))]}
    assert mean_curves(runs[:1])["val/loss"] == [(1, 2.0, 0.0), (2, 4.0, 0.0)]
