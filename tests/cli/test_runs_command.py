"""`aim-lightning runs`: states, best metrics, order, differences, and directories that are not runs."""

import csv
import io
import json
import math
import os
import time
from dataclasses import replace

import pytest
from conftest import python
from helpers import TINY, assert_contains
from integration.tiny import Experiment, write_experiment
from weights.makers import aim, run_content, write_run

from aim_lightning.checkpoint.io import write_checkpoint
from aim_lightning.cli.main import main
from aim_lightning.evaluation.score_record import score_record
from aim_lightning.runs.directory import RunDirectory, newest_checkpoint
from aim_lightning.runs.history import read_content
from aim_lightning.runs.lease import Lease
from aim_lightning.runs.results import record
from aim_lightning.utils.files import write_json


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def listed(root, succeed):
    """Return the function that lists runs and returns the rows of the JSON by EXPERIMENT/RUN."""

    def call(*words) -> dict[str, dict]:
        rows = json.loads(succeed("runs", *words, "--runs_root", root, "--json"))
        return {f"{row['experiment']}/{row['run']}": row for row in rows}

    return call


def make_run(root, name, step=8, max_steps=8, cursor=None, **trainer):
    """Write a run with the checkpoint of one step; return the run."""
    content = run_content(aim(), trainer={"global_step": step, **trainer})
    content["configuration"] |= {"trainer": {"max_steps": max_steps}}
    directory = root / name
    write_checkpoint(content, directory / "checkpoints" / f"step={step:08d}.ckpt")
    return RunDirectory(directory.parent.name, directory.name, root)


def write_scores(run, name, fid, seed=0, step=8, reference="pictures"):
    source = {"kind": reference, "name": "train", "fingerprint": "f" * 64}
    protocol = {"sampling": {"cfg_scale": 2, "seed": seed}, "reference": source}
    values = score_record({"step": step}, {}, {"fid": fid, "precision": fid / 10}, 50000, protocol, {}, "CPU")
    write_json(run.path / "evaluations" / name / "scores.json", values)


def test_states(root, listed):
    make_run(root, "a/finished")
    make_run(root, "a/stopped", step=5)
    make_run(root, "a/imported", step=0, imported_from="weights/aim_b")
    make_run(root, "a/damaged").checkpoints()[0].write_bytes(b"no archive")
    refused, repaired = make_run(root, "a/refused", step=5), make_run(root, "a/repaired", step=5)
    now = time.time()
    for run, started in ((refused, now - 60), (repaired, now + 60)):
        write_json(run.path / "outcome.json", {"job": "7", "starts": 0, "code": 2})
        run.history.write_text("{}\n")
        os.utime(run.history, (started, started))
    stale = make_run(root, "a/stale", step=5)
    write_json(stale.lease, {"host": "elsewhere", "pid": 1, "job": None, "starts": 0})
    os.utime(stale.lease, (now - 61, now - 61))
    training = make_run(root, "b/training", step=5)
    with Lease(training.lease):
        rows = listed()
    states = {name: row["state"] for name, row in rows.items()}
    assert states.pop("b/training") == "training" and len(states) == 7
    expected = {"damaged": "refused", "repaired": "stopped", "stale": "stopped"}
    assert states == {f"a/{name}": expected.get(name, name) for name in (path.name for path in (root / "a").iterdir())}
    assert [rows[name]["step"] for name in ("a/stopped", "a/damaged")] == [5, 0]
    assert listed("b")["b/training"]["state"] == "stopped"  # the lease is released


def test_a_lease_of_a_dead_process_is_not_a_training(root, listed):
    run = make_run(root, "a/killed", step=5)
    code = "import os, sys; from aim_lightning.runs.lease import Lease; Lease(sys.argv[1]).__enter__(); os._exit(9)"
    code = code.replace("sys.argv[1]", "__import__('pathlib').Path(sys.argv[1])")
    assert python("-c", code, run.lease).returncode == 9 and run.lease.exists()
    assert listed()["a/killed"]["state"] == "stopped"


def test_best_metrics_name_their_protocol(root, listed, succeed):
    run, other = make_run(root, "a/main"), make_run(root, "a/other")
    record(run, "validate", 8, {}, {"fid_2k": 9.0, "fid_2k_real": 1.0, "val/loss": 2.0}, "CPU")
    for name, fid, step in (("early", 5.0, 4), ("late", 4.0, 8)):
        write_scores(run, name, fid, step=step)
    for seed, fid in enumerate((1.0, 8.0)):  # the mean over seeds is 4.5
        write_scores(other, f"seed{seed}", fid, seed=seed)
    write_scores(other, "foreign", 1.5, reference="folder")
    rows = listed()
    assert rows["a/main"]["metrics"] == {"fid_2k": 9.0, "fid_50k": 4.0, "precision_50k": 0.5, "val/loss": 2.0}
    best = rows["a/other"]["metrics"]
    assert best["fid_50k"] == 4.5 and best["fid_50k@train-ffffffff"] == 1.5 and rows["a/other"]["loss"] is None
    table = succeed("runs", "--runs_root", root, "--sort", "precision_50k").splitlines()
    assert [line.split()[1] for line in table] == ["run", "main", "other"]
    assert_contains(table[1], ["finished", "2.0000", "fid_2k 9", "fid_50k 4"])
    assert table[0].index("best metrics") == table[1].index("fid_2k")
    rows = list(csv.DictReader(io.StringIO(succeed("runs", "a", "--runs_root", root, "--csv"))))
    assert (rows[0]["val/loss"], rows[1]["val/loss"], rows[1]["fid_50k"]) == ("2.0", "", "4.5")


def test_a_diverged_run_is_the_last_one_and_null_in_json(root, listed, succeed):
    for name, loss in (("a/bad", math.nan), ("a/good", 2.0), ("b/none", None), ("b/worse", 3.0)):
        run = make_run(root, name)
        record(run, "fit", 8, {}, {"val/loss": loss} if loss else {}, "CPU")
    table = succeed("runs", "--runs_root", root, "--sort", "val/loss").splitlines()
    assert [line.split()[1] for line in table] == ["run", "good", "worse", "bad", "none"]
    assert listed()["a/bad"]["loss"] is None and listed()["a/bad"]["metrics"] == {"val/loss": None}


def test_results_of_an_earlier_step_are_not_the_validation_loss(root, listed):
    callbacks = {"ResumeState": {"validation": {"val/loss": 1.5, "val/psnr": 20.0}}}
    run = make_run(root, "a/longer", callbacks=callbacks)
    record(run, "fit", 4, {}, {"val/loss": 3.0, "val/psnr": 25.0}, "CPU")
    row = listed()["a/longer"]
    assert row["loss"] == 1.5 and row["metrics"] == {"val/loss": 1.5, "val/psnr": 25.0}


def test_damaged_and_foreign_directories_cause_one_line_each(root, capsys):
    make_run(root, "a/main")
    foreign = {"a/json/results.json": "[1", "a/list/results.json": "[]", "a/outcome/outcome.json": "[]"}
    foreign |= {"a/scores/evaluations/x/scores.json": "{}", "a/outcome/config.yaml": "", "a/scores/config.yaml": ""}
    foreign |= {
        "a/lines/samples/evaluations.jsonl": '{"format": "aim_lightning.scores/1"}\n',
        "a/lines/config.yaml": "",
    }
    for name, text in {**foreign, "old/set/a.json": "{}", "given/set/scores.json": "{}", "notes.txt": ""}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    assert main(["runs", "--runs_root", str(root)]) == 0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert "a           main     8  finished" in out and len(out.splitlines()) == 2
    assert len(lines) == 6 and all(line.startswith("warning: ") for line in lines)
    assert f"directories that are not runs are left out: {root}/old/set" in lines[-1] and "given" not in lines[-1]
    for name in ("json", "list", "outcome", "scores", "lines"):
        assert sum(f"{root}/a/{name}" in line for line in lines) == 1


def test_without_runs_the_searched_directories_are_named(root, succeed, capsys):
    (root / "a").mkdir(parents=True)
    for words, place in (([], root), (["a"], root / "a")):
        assert f"no runs in {place}\nnext: make demo" in succeed("runs", *words, "--runs_root", root)
    make_run(root, "a/odd").results.write_text("[]")
    assert main(["runs", "--runs_root", str(root)]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "a/odd cannot be read" in err and "remove" not in err


MISTAKES = [
    (["dem"], "runs/dem does not exist; did you mean demo?"),
    (["--sort", "val/los"], "no run has the metric 'val/los'; did you mean val/loss?"),
    (["--json", "--csv"], "--json and --csv exclude each other"),
    (["diff", "demo/main", "demo/none"], "demo/none is not a run; give EXPERIMENT/RUN"),
    (["diff", "demo/main"], "SECOND"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes_are_one_line(root, fail, words, message):
    record(make_run(root, "demo/main"), "fit", 8, {}, {"val/loss": 3.0}, "CPU")
    assert message in fail("runs", *words, "--runs_root", root)


def write_yaml(run, text):
    run.config.write_text(f"experiment: a\nrun: {run.run}\nruns_root: {run.root}\n{text}")


def test_differences_between_two_runs(root, succeed):
    first, second = make_run(root, "a/one", step=5), make_run(root, "a/two")
    model = "model:\n  class_path: M\n  init_args:\n    lr: {}\n    betas: [0.9, 0.95]\n"
    write_yaml(first, model.format(0.1) + "images: {train: /data/flowers/train, val: /data/flowers/val}\n")
    changed = "    seed: 3\nimages: {train: /scratch/me/flowers/train, val: /data/birds/val}\n"
    write_yaml(second, model.format(0.2) + changed)
    record(second, "fit", 8, {}, {"val/loss": 0.25}, "CPU")
    text = succeed("runs", "diff", "a/one", second.path, "--runs_root", root)
    rows = [line.split() for line in text.splitlines()]
    assert rows == [
        ["option", "a/one", "a/two"],
        ["images.val", "/data/flowers/val", "/data/birds/val"],
        ["model.lr", "0.1", "0.2"],
        ["model.seed", "null", "3"],
        [],
        ["metric", "a/one", "a/two"],
        ["step", "5", "8"],
        ["state", "stopped", "finished"],
        ["val/loss", "–", "0.25"],
    ]
    assert "both runs have the same configuration" in succeed("runs", "diff", first.path, first.path)


def test_other_images_under_the_same_path_are_a_difference(root, succeed):
    for name, fingerprint in (("one", "aa"), ("two", "bb")):
        write_run(root / "a" / name, aim(), data={"rows": 7, "fingerprint": fingerprint * 32})
    text = succeed("runs", "diff", "a/one", "a/two", "--runs_root", root)
    assert "training set  7 rows, aaaaaaaaaaaa  7 rows, bbbbbbbbbbbb" in text


def test_a_real_training(tmp_path, succeed):
    """Train, stop and list: the loss of the last validation is in the checkpoint, without results.json."""
    experiment = Experiment(write_experiment(tmp_path))
    directory = experiment.fit("main", "--trainer.max_steps", 4, "--trainer.val_check_interval", 2)
    results = json.loads((directory / "results.json").read_text())["metrics"]
    content = read_content(RunDirectory("tiny", "main", tmp_path / "runs"), {})
    assert content.validation == {name: value for name, value in results.items() if name.startswith("val/")} != {}
    (directory / "results.json").unlink()
    text = succeed("runs", "--runs_root", tmp_path / "runs")
    assert_contains(text, ["tiny", "finished", f"{results['val/loss']:.4f}"])
    assert newest_checkpoint(directory).name == "step=00000004.ckpt"
    other = replace(TINY, d_model=64)
    write_run(tmp_path / "runs" / "tiny" / "other", aim(other))
    assert_contains(succeed("runs", "diff", "tiny/main", "tiny/other", "--runs_root", tmp_path / "runs"), ["d_model"])
