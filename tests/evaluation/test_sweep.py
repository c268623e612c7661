"""Sweeps, follow, reproduce and the table of results."""

import csv
import json
import shutil
import time
from dataclasses import asdict, replace
from unittest import mock

import numpy as np
import pytest
from conftest import ROOT
from evaluation import small
from evaluation.small import config, last_error, refused, workspace, write_step  # noqa: F401
from helpers import assert_user_error
from hypothesis import given
from hypothesis import strategies as st
from integration.tiny import events, hparam_sessions, scalars
from PIL import Image

from aim_lightning.cli.commands.follow import load_together, new_checkpoints
from aim_lightning.cli.main import main
from aim_lightning.evaluation.report.sweep import grid_points, label, lowest_points, parse_grid, read_sweeps
from aim_lightning.evaluation.report.table import paper_results, read_records, read_suites, render
from aim_lightning.evaluation.score_record import read_record, score_record
from aim_lightning.evaluation.scorer import Evaluation
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json, write_json
from aim_lightning.weights.download import DOWNLOADS, HubFiles

pytestmark = pytest.mark.filterwarnings("ignore:FrechetDistance")
GRID = "cfg_scale=1,2 cfg_schedule=constant,linear"


def call(command, config, *options):
    return small.call(command, config, "--num", 24, *options)


def test_grid():
    grid = parse_grid("cfg_scale=1,1.5 cfg_interval=[0,0.5],[0.2,0.8] cfg_schedule=interval")
    assert grid == {"cfg_scale": [1, 1.5], "cfg_interval": [[0, 0.5], [0.2, 0.8]], "cfg_schedule": ["interval"]}
    points = grid_points(grid, SamplingOptions(seed=4))
    expected = [(1, (0, 0.5), 4), (1, (0.2, 0.8), 4), (1.5, (0, 0.5), 4)]
    assert [(point.cfg_scale, point.cfg_interval, point.seed) for point in points[:3]] == expected
    # 1 and 1.0 are one point, whose images are in one directory.
    same = SamplingOptions(1.0, seed=4, cfg_schedule="interval", cfg_interval=(0.0, 0.5))
    assert json.dumps(asdict(points[0])) == json.dumps(asdict(same))
    assert label(points[1], list(grid)) == "cfg_scale=1,cfg_interval=0.2-0.8,cfg_schedule=interval"


INVALID_GRIDS = ["", "guidance=1", "cfg_scale", "cfg_scale=", "top_k=1 top_k=2", "batch_size=3", "top_k=1,2,1"]


def test_an_unknown_option_gets_a_suggestion():
    assert_user_error(r"--grid: 'cfg' is no sampling option; did you mean cfg_scale\?", parse_grid, "cfg=2")


@pytest.mark.parametrize("text", INVALID_GRIDS)
def test_invalid_grids_are_refused(text):
    assert_user_error("--grid", parse_grid, text)


WRONG_VALUES = ["cfg_scale=abc", "cfg_scale=1,-1", "cfg_scale=.inf", "cfg_schedule=constant,foo", "cfg_interval=[0,2]"]
WRONG_VALUES += ["cfg_interval=3", "top_k=1.5", "top_k=-1", "top_p=0", "temperature=1,0", "seed=true"]
WRONG_VALUES += ["seed=99999999999999999999", "position_offset=2", "decoder=slow", "precision=half"]


@pytest.mark.parametrize("text", WRONG_VALUES)
def test_every_point_is_checked_before_the_first_sample(text, config, monkeypatch, capsys):
    assert_user_error(f"--grid: .*{text.partition('=')[0]}", grid_points, parse_grid(text), SamplingOptions())
    monkeypatch.setattr("aim_lightning.cli.build.evaluation_setup.start", None)  # is never reached
    assert refused(capsys, "sweep", config, "--grid", text).startswith("error: --grid: ")


@pytest.mark.parametrize("name", ["..", "a/b", ".x"])
def test_the_name_of_a_sweep_is_a_plain_name(name, config, capsys):
    assert call("sweep", config, "--grid", "top_k=1", "--name", name) == 2
    assert last_error(capsys).startswith(f"error: command line: --name is {name!r}; ")


def test_unsupported_options_are_refused_before_the_first_sample(config, monkeypatch, capsys):
    monkeypatch.setattr(Evaluation, "run", None)  # is never reached
    error = refused(capsys, "sweep", config, "--grid", "cfg_scale=1,2 pixel_precision=float32,tf32")
    assert "pixel_precision tf32 needs an NVIDIA GPU" in error


def test_another_sweep_over_the_same_grid_has_another_directory(config, workspace):
    for options in (("--num", "5"), ("--num", "6"), ("--num", "6", "--sampling.temperature", "0.9"), ("--num", "6")):
        assert call("sweep", config, "--grid", "top_k=2", *options) == 0
    assert len(list((workspace / "runs" / "small" / "main" / "sweeps").glob("top_k-*/results.csv"))) == 3


@given(st.lists(st.floats(0, 30).map(lambda x: round(x, 3)), min_size=1, max_size=5, unique=True))
def test_grid_values_come_back(values):
    assert parse_grid("cfg_scale=" + ",".join(map(str, values))) == {"cfg_scale": values}


def test_sweep_resumes_shares_its_reference_and_ends_in_table_plots_and_hparams(config, workspace, monkeypatch, capsys):
    generate, generated = Evaluation._images, []

    def stop_at_the_third(self, *arguments):
        generated.append(arguments)
        if len(generated) == 3:
            raise KeyboardInterrupt
        return generate(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "_images", stop_at_the_third)
        assert call("sweep", config, "--grid", GRID, "--name", "test") == 130
    directory = workspace / "runs" / "small" / "main" / "sweeps" / "test"
    assert len(list(csv.DictReader((directory / "results.csv").open()))) == 2
    generated.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "_images", lambda self, *words: generated.append(words) or generate(self, *words))
        patch.setattr("aim_lightning.cli.commands.sweep.SWEEPS", workspace / "sweeps")
        patch.setattr("aim_lightning.cli.commands.sweep.HPARAMS", workspace / "hparams")
        assert call("sweep", config, "--grid", GRID, "--name", "test", "--record", "guidance") == 0
    assert len(generated) == 2 and len(list((workspace / "cache").glob("effnet_lite0-*"))) >= 1
    rows = list(csv.DictReader((directory / "results.csv").open()))
    points = ["1 constant", "1 linear", "2 constant", "2 linear"]
    assert [f"{row['cfg_scale']} {row['cfg_schedule']}" for row in rows] == points
    values = [float(row["fd_effnet_lite0_24"]) for row in rows]
    assert values[0] == values[1] and values[2] != values[3]  # without guidance a schedule changes nothing
    for name in ("metrics", "precision_recall"):
        with Image.open(directory / f"{name}.png") as plot:
            assert plot.size[0] > 300
    sessions = hparam_sessions(workspace / "hparams/small/main/sweeps/test")
    options, metrics = sessions.pop("cfg_scale=2,cfg_schedule=linear")
    assert options == {"cfg_scale": 2, "cfg_schedule": "linear"} and len(sessions) == 3
    assert metrics["sweep/fd_effnet_lite0_24"] == pytest.approx(values[3])
    assert {path.parent for path in directory.rglob("events.out.*")} == {directory}  # one run of TensorBoard
    page = events(directory)
    (table,) = page.Tensors("sweep/results/text_summary")
    assert table.tensor_proto.string_val[0].decode().splitlines()[5].startswith("| 2 | linear |")
    assert page.Tags()["images"] == ["sweep/metrics", "sweep/precision_recall"]
    assert "lowest fd_effnet_lite0_24" in capsys.readouterr().out
    kept = {"results.csv", "protocol.json", "metrics.png", "precision_recall.png"}
    assert {path.name for path in (workspace / "sweeps" / "guidance").iterdir()} == kept
    sweep = read_json(directory / "protocol.json", "protocol")
    assert sweep["varied"] == {"cfg_scale": ["1", "2"], "cfg_schedule": ["constant", "linear"]}
    assert sweep["protocol"]["sampling"]["top_k"] == 0 and "cfg_scale" not in sweep["protocol"]["sampling"]
    assert sweep["protocol"]["reference"]["fingerprint"] and len(sweep["commit"]) == len(sweep["hardware"]) == 1
    assert main(["table", "--results", str(workspace / "none")]) == 2
    assert "none does not exist; run this in the root of a checkout, or set --results" in last_error(capsys)
    (workspace / "results").mkdir(exist_ok=True)
    options = ("--results", workspace / "results", "--sweeps", workspace / "sweeps", "--out", workspace / "README.md")
    assert main(["table", *map(str, options)]) == 0
    text = (workspace / "README.md").read_text()
    assert "- **guidance**: run small, step 7 (ema), 24 images per point; cfg_scale 1, 2; cfg_schedule" in text
    assert "[results.csv](sweeps/guidance/results.csv)" in text
    assert not list(workspace.glob("runs/small/main/evaluations/*cfg2*-24-*/samples.npz"))


def follow(config, *options):
    """Follow without waiting: the small run's configuration has no last step."""
    return call("follow", config, "--run", "live", "--every", "0.01", "--patience", "0", *options)


def test_follow_scores_each_checkpoint_once(config, workspace, capsys):
    for step in (5, 10):
        write_step(workspace, step, "live", seed=step)
    run_dir = workspace / "runs" / "small" / "live"
    assert follow(config) == 0
    write_step(workspace, 15, "live", seed=15)
    assert follow(config) == 0
    (directory,) = (run_dir / "follow").iterdir()
    values = scalars(directory)["metrics/fd_effnet_lite0_24"]
    assert [step for step, _ in values] == [5, 10, 15] and len({value for _, value in values}) == 3
    assert len(scalars(directory)["metrics/mind_effnet_lite0_24"]) == 3
    capsys.readouterr()
    assert follow(config) == 0
    assert "step=" not in capsys.readouterr().out
    assert len(scalars(directory)["metrics/fd_effnet_lite0_24"]) == 3
    assert follow(config, "--sampling.cfg_scale", "3") == 0
    (other,) = set((run_dir / "follow").iterdir()) - {directory}
    other_values = scalars(other)["metrics/fd_effnet_lite0_24"]
    assert [step for step, _ in other_values] == [5, 10, 15] and other_values != values
    options = [read_json(path / "protocol.json", "protocol")["sampling"] for path in (directory, other)]
    assert [values["cfg_scale"] for values in options] == [1.5, 3]
    assert {(values["decoder"], values["precision"]) for values in options} == {("plain", "float32")}, "no auto"
    capsys.readouterr()
    for content in ("{}", "null", '["5"]', "[[5]]"):
        (directory / "steps.json").write_text(content)
        assert follow(config) == 2
        assert "steps.json was not written by this project; move it away" in last_error(capsys)


def test_follow_needs_a_run_and_a_checkpoint(config, workspace, capsys):
    error = refused(capsys, "follow", config, "--run", "mistyped")
    assert "small/mistyped does not exist; start its training first" in error
    (workspace / "runs" / "small" / "young").mkdir()
    error = refused(capsys, "follow", config, "--run", "young", "--every", "0.01", "--patience", "0.1")
    assert "got no checkpoint within 0.1 seconds" in error


def test_follow_ends_after_its_patience_also_with_a_lease(tmp_path):
    directory = RunDirectory("e", "r", tmp_path)
    directory.checkpoint_directory.mkdir(parents=True)
    directory.lease.touch()
    for step in (1, 2):
        (directory.checkpoint_directory / f"step={step:08d}.ckpt").touch()
    assert [step for step, _ in new_checkpoints(directory, {1}, 0.01, 0.05, ProcessGroup())] == [2]


def test_follow_waits_for_the_start_and_for_requeues_and_ends_with_the_training(workspace, monkeypatch):
    """No lease before training starts, between requeues, and after the end: only the last ends it immediately."""
    live, counts = RunDirectory("small", "requeued", workspace / "runs"), []
    live.path.mkdir(parents=True)

    def sleep(seconds):  # training writes a checkpoint between two checks
        counts.append(len(live.checkpoints()))
        if len(counts) in (3, 6, 9):  # step 9 is the last of the training
            write_step(workspace, len(counts), "requeued", max_steps=9)

    # Not `time.sleep` itself: threads of other tests in this process call it too.
    monkeypatch.setattr("aim_lightning.cli.commands.follow.time", mock.Mock(wraps=time, sleep=sleep))
    assert [step for step, _ in new_checkpoints(live, set(), 1, 60, ProcessGroup())] == [3, 6, 9]
    assert counts == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_checkpoint_that_one_rank_cannot_load_is_removed_or_an_error_on_all(tmp_path):
    class Two(ProcessGroup):
        def gather(self, value):
            return [value, UserError("step=3 is damaged")]

    path = tmp_path / "step=00000003.ckpt"
    assert load_together(path, Two(), lambda: "model") is None
    assert load_together(path, ProcessGroup(), lambda: "model") == "model"
    path.touch()
    assert_user_error("damaged", load_together, path, Two(), lambda: "model")


def test_reproduce_prints_our_row_next_to_the_papers(config, workspace, monkeypatch, capsys):
    """Random weights in the published layout, scored on the stand-in: comparable with no paper."""
    monkeypatch.setattr("aim_lightning.cli.build.evaluation_setup.RESULTS", workspace / "results")
    published = ("--weights", workspace / "published", "--reference", ROOT / "data/fashion_mnist_mini/val")
    plain = workspace / "plain.yaml"
    plain.write_text(config.read_text().replace("cfg_scale: 1.5, ", ""))
    assert call("reproduce", plain, "--preset", "AiM-B", *published, "--record", "aim_b") == 0
    out = capsys.readouterr().out
    assert "| AiM-B, paper | 3.52 | 250.1 | 0.83 | 0.52 |" in out and "| AiM-B, here | – |" in out
    assert "not FID" in out and "24 samples instead of 50,000" in out
    sampling = read_record(workspace / "results" / "aim_b.json")["protocol"]["sampling"]
    assert (sampling["cfg_scale"], sampling["position_offset"], sampling["top_k"]) == (2.0, 1, 0)
    assert (workspace / "runs/published/published/evaluations/AiM-B.json").is_file()
    assert call("reproduce", config, "--preset", "AiM-B", *published, "--record", "aim_b") == 0
    sampling = read_record(workspace / "results" / "aim_b.json")["protocol"]["sampling"]
    assert sampling["cfg_scale"] == 1.5  # the configuration precedes the default


def test_reproduce_downloads_missing_weights_and_reference(config, workspace, monkeypatch, capsys, tmp_path):
    """No Inception where the configuration names other features; a directory that is present is used unchanged."""
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    calls = []

    def download(entry):
        calls.append(entry)
        if isinstance(entry, HubFiles):
            shutil.copytree(workspace / "published", tmp_path / "aim_b")
        else:
            np.savez(tmp_path / "adm.npz", arr_0=images)
        return entry.path

    monkeypatch.setattr("aim_lightning.weights.download.download", download)
    monkeypatch.setitem(DOWNLOADS, "AiM-B", replace(DOWNLOADS["AiM-B"], path=str(tmp_path / "aim_b")))
    monkeypatch.setitem(DOWNLOADS, "adm", replace(DOWNLOADS["adm"], path=str(tmp_path / "adm.npz")))
    for _ in range(2):
        assert call("reproduce", config, "--preset", "AiM-B") == 0
    assert calls == [DOWNLOADS["AiM-B"], DOWNLOADS["adm"], DOWNLOADS["adm"]]
    assert "| AiM-B, here |" in capsys.readouterr().out


OFFLINE = [
    (["--preset", "AiM-Z", "--reference", "x.npz"], "the paper's table has AiM-B"),
    (["--preset", "AiM-1B", "--reference", "x.npz"], "no published weights"),
    (["--preset", "AiM-B"], "hp-l33/aim-base is not on this machine and the hub cannot be reached"),
    (["--preset", "AiM-B", "--weights", "x"], "VIRTUAL_imagenet256_labeled.npz cannot be downloaded (no network)"),
    (["--preset", "AiM-B", "--weights", "x", "--reference", "x.npz"], "6726825d.pth cannot be downloaded"),
]


@pytest.mark.parametrize(("options", "words"), OFFLINE)
def test_reproduce_offline_reports_what_is_missing_in_one_line(options, words, monkeypatch, capsys, tmp_path):
    def unreachable(*words, **more):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setattr("aim_lightning.weights.download.HfApi.model_info", unreachable)
    assert main(["reproduce", *options, "--trainer.accelerator", "cpu"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and words in error and "\n" not in error
    assert not list(tmp_path.rglob("*.npz"))


def make_record(fid=True, **more):
    values = {"fid": 9.876, "is": 100.5, "is_std": 1.0, "kid": -1e-6} if fid else {"fd_effnet_lite0": 5.5}
    protocol = {
        "sampling": {"cfg_scale": 2.0, "top_k": 600, "temperature": 0.9, "seed": 0},
        "features": {"network": "inception", "weights_sha256": "ab" * 32, "resizing": "bilinear"},
        "reference": {"kind": "npz", "name": "ref.npz", "sha256": "cd" * 32, "pictures": 10000},
    }
    model = {"kind": "run", "experiment": "demo", "step": 1200, "weights": "ema"}
    return score_record(model, {"pictures": "fashion"}, values, 10_000, protocol, {}, "1 x GPU") | more


def test_no_winner_within_noise():
    records = [{"metrics": {"fid": value}, "std": {"fid": 0.2}} for value in (3.3, 3.0, 3.5)]
    assert lowest_points(records, "fid") == [1, 0]
    assert lowest_points([{"metrics": record["metrics"]} for record in records], "fid") == [1]


def test_the_table_shows_recorded_results_only(tmp_path):
    empty = render({}, {})
    assert "Nothing is recorded yet" in empty and "| AiM-B | 148M | 3.52 | 250.1 | 0.83 | 0.52 |" in empty
    assert [len(rows) for rows in paper_results().values()] == [4, 11]
    several = {"seeds": [0, 1, 2], "std": {"fid_10k": 0.25}}
    for name, options in (("one", {}), ("two", {"fid": False}), ("three", several)):
        write_json(tmp_path / "results" / f"{name}.json", make_record(**options))
    directories = ["--results", str(tmp_path / "results"), "--sweeps", str(tmp_path / "none")]
    assert main(["table", *directories, "--out", str(tmp_path / "README.md")]) == 0
    text = (tmp_path / "README.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith("| one |"))
    record = read_record(tmp_path / "results" / "one.json")
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:11] == ["one", "fashion", "ref.npz", "10,000", "9.88", "–", "100.50", "–", "–", "0.0000", "–"]
    assert cells[11:] == ["2, temperature 0.9, top_k 600", "–", record["hardware"], record["commit"]]
    assert "| three | fashion | ref.npz | 10,000 | 9.88 ± 0.25 |" in text
    assert "reference: 10,000 images of ref.npz (sha256 cdcdcdcdcdcd…)" in text
    assert text.index("Stand-ins") < text.index("| two |") and "abababababab" in text
    (tmp_path / "results" / "bad.json").write_text("{}")
    assert_user_error("is not a record of scores", read_records, tmp_path / "results")


def test_the_shipped_table_is_up_to_date():
    """`make table` was run after the last record."""
    records, sweeps = read_records(ROOT / "experiments/results"), read_sweeps(ROOT / "experiments/sweeps")
    suites = read_suites(ROOT / "experiments/suites")
    suites["demo"] = (suites["demo"][0], [])  # `make suite SUITE=demo` may have run in this checkout
    assert (ROOT / "experiments/README.md").read_text() == render(records, sweeps, suites)
