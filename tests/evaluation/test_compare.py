"""`aim-lightning evaluate --compare`: columns of one protocol, means over seeds, missing values, and the sources."""

import copy
import csv
import json
import statistics

import numpy as np
import pytest
from conftest import ROOT, python
from evaluation.small import call, config, refused, workspace, write_step  # noqa: F401
from helpers import assert_contains, assert_user_error
from PIL import Image

from aim_lightning.evaluation.report.comparison import Row, combine, measurement, record_values, titles, write_tables
from aim_lightning.evaluation.report.sources import read_row

pytestmark = pytest.mark.filterwarnings("ignore:FrechetDistance", "ignore:.*Fabric.*")
FEATURES = {"network": "effnet_lite0", "weights_sha256": "5793" + "0" * 60}
REFERENCE = {"kind": "pictures", "name": "train", "fingerprint": "f" * 64, "pictures": 60}
PROTOCOL = {
    "sampling": {"cfg_scale": 1.5, "seed": 0},
    "features": FEATURES,
    "reference": REFERENCE,
    "num_images": 100,
    "kernel_distance": {"subsets": 100},
    "neighbours": {"k": 3},
    "fdr": {"num_heldout": 100},
}
METRICS = {"fd_effnet_lite0_100": 12.0, "kd_effnet_lite0_100": 0.5, "precision_effnet_lite0_100": 0.75}


def record(metrics=METRICS, **changes):
    return {"format": "aim_lightning.scores/1", "metrics": metrics, "protocol": {**copy.deepcopy(PROTOCOL), **changes}}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def row(path):
    return read_row(str(path), path.parent, score=None)


def test_values_of_other_features_references_or_settings_have_columns_of_their_own():
    base, other = record_values(record()), {**REFERENCE, "fingerprint": "a" * 64}
    sampled = record_values(record(sampling={"cfg_scale": 4.0, "seed": 7}, labels={"chosen": None}))
    assert base.keys() == sampled.keys(), "options of sampling belong to the row"
    for changes in ({"reference": other}, {"features": {**FEATURES, "precision": "tf32"}}):
        assert not base.keys() & record_values(record(**changes)).keys()
    metrics = {column.metric for column in base.keys() & record_values(record(kernel_distance={"subsets": 5})).keys()}
    assert metrics == METRICS.keys() - {"kd_effnet_lite0_100"}, "only the kernel distance depends on the subsets"
    earlier = record(precision_recall={"k": 3})
    del earlier["protocol"]["neighbours"]
    assert base.keys() == record_values(earlier).keys(), "records of earlier versions"


def test_a_metric_belongs_to_the_network_in_its_name():
    inception = {**PROTOCOL, "features": {"network": "inception_2015_12_05"}}
    protocol = {**PROTOCOL, "more_features": {"inception": inception}}
    for metric in ("fid_100", "is_100", "precision_100", "mind_inception_100", "fdr_inception_100"):
        assert measurement(metric, protocol) == measurement(metric, inception)
    for metric in ("fd_effnet_lite0_100", "precision_effnet_lite0_100", "class_agreement_100"):
        assert measurement(metric, protocol) == measurement(metric, PROTOCOL)
    mean, exchanged = "fdr_effnet_lite0+inception_100", {**inception, "more_features": {"effnet_lite0": PROTOCOL}}
    assert measurement(mean, protocol) == measurement(mean, exchanged)
    assert set(measurement(mean, protocol)["networks"]) == {"effnet_lite0", "inception_2015_12_05"}


def test_a_mean_over_matches_has_the_deviation_of_its_values(tmp_path):
    values = [12.0, 15.0, 21.0]
    for seed, value in enumerate(values):
        metrics = {"fd_effnet_lite0_100": value} | ({"kd_effnet_lite0_100": 0.5} if seed == 1 else {})
        write(tmp_path / f"seed{seed}" / "scores.json", record(metrics))
    several = read_row(str(tmp_path / "seed*"), tmp_path, score=None)
    by_name = {column.metric: value for column, value in several.values.items()}
    assert by_name["fd_effnet_lite0_100"] == pytest.approx((np.mean(values), np.std(values, ddof=1), 3))
    assert by_name["kd_effnet_lite0_100"] == (0.5, 0.0, 1), "of one source alone"
    assert several.guidance == "1.5"


def test_missing_values_are_dashes_and_published_rows_have_columns_of_their_own(tmp_path):
    seeds = record({"fid_50k": 2.0, "is_50k": 200.0, "is_std_50k": 9.0}) | {
        "std": {"fid_50k": 0.25, "is_50k": 3.0},
        "seeds": [0, 1, 2],
    }
    sources = [write(tmp_path / "seeds.json", seeds), write(tmp_path / "one.json", record())]
    rows = [*map(row, sources), read_row("aim-b", tmp_path, None), read_row("VAR-d16", tmp_path, None)]
    names = list(titles(rows).values())
    assert names[:4] == ["fid_50k [1]", "fid_50k [2]", "is_50k [1]", "is_50k [2]"]
    text = write_tables(tmp_path, rows)
    head, _, *lines = (tmp_path / "comparison.md").read_text().splitlines()
    table = {(cells := line.split("|"))[1].strip(): [cell.strip() for cell in cells[2:-1]] for line in lines[:4]}
    assert [cell.strip() for cell in head.split("|")[2:-1]] == [*names, "guidance"]
    assert table[str(sources[0])][:2] == ["2.00 ± 0.25 (3)", "–"] and table["aim-b"][:2] == ["–", "3.52"]
    assert table["VAR-d16"][names.index("precision_50k")] == "–", "not reported"
    assert table[str(sources[1])][:4] == ["–"] * 4
    legend = (tmp_path / "comparison.md").read_text()
    assert_contains(legend, ["fid_50k [2], is_50k [2], precision_50k, recall_50k: as reported, arXiv 2408.12245"])
    assert_contains(legend, ["features effnet_lite0 (579300000000…); reference 60 images of train (fingerprint ffff"])
    first, *_, var = csv.DictReader((tmp_path / "comparison.csv").open())
    assert (first["fid_50k [1]"], first["fid_50k [1]_std"], first["fid_50k [1]_count"]) == ("2.0", "0.25", "3")
    assert (var["precision_50k"], var["fid_50k [2]"], var["fid_50k [2]_std"]) == ("", "3.3", "")
    assert [line.split()[0] for line in text.splitlines()[1:3]] == ["fid_50k", "fid_50k"]


def test_a_run_has_the_values_of_all_its_entries_but_losses_and_baselines(tmp_path):
    nested = {"tokenizer": "t", **copy.deepcopy(PROTOCOL)}
    pixels, psnr = {"reference": "f" * 64, "precision": "float32"}, {"psnr_60": 22.0}
    validate = {"step": 5, "sample_metrics": nested, "named": pixels, "metrics": []}
    evaluate = {"step": 5, **copy.deepcopy(PROTOCOL), "seeds": [0, 1], "std": {"kd_effnet_lite0_100@x-1": 0.1}}
    metrics = {**METRICS, **psnr, "val/loss": 2.0, "fd_effnet_lite0_100_real": 1.0, "kd_effnet_lite0_100@x-1": 0.5}
    del metrics["kd_effnet_lite0_100"]
    validate["metrics"] = [name for name in metrics if "@" not in name]
    evaluate["metrics"] = ["kd_effnet_lite0_100@x-1"]
    protocol = {"step": 5, "validate": validate, "evaluate_kd": evaluate}
    write(tmp_path / "small" / "main" / "results.json", {"protocol": protocol, "metrics": metrics})
    result = read_row("small/main", tmp_path, None)
    values = {column.metric: value for column, value in result.values.items()}
    assert values.keys() == {*METRICS, *psnr} and values["kd_effnet_lite0_100"] == (0.5, 0.1, 2)
    assert result.guidance == "1.5" and result.values.keys() >= record_values(record()).keys()


def test_combining_one_row_changes_no_value():
    values = record_values(record() | {"std": dict.fromkeys(METRICS, 0.1), "seeds": [0, 1]})
    assert combine("x", [Row("y", values)]).values == values
    deviation = combine("x", [Row("y", values), Row("z", record_values(record({**METRICS, "fd_effnet_lite0_100": 8})))])
    column = next(column for column in values if column.metric == "fd_effnet_lite0_100")
    assert deviation.values[column] == (10.0, statistics.stdev([12, 8]), 2)


def test_wrong_sources_are_one_line(config, workspace, capsys):
    write_step(workspace, 7, "unscored")
    for source, message in (
        ("small/unscored", "small/unscored holds no scores; run validate or evaluate first"),
        ("small", "small is an experiment; give small/RUN, or small/*"),
        ("VAR-d31", "VAR-d31 does not exist; did you mean VAR-d30?"),
        ("nothing-*", "nothing-* matches nothing"),
        (str(config), "truncated, damaged or no"),
    ):
        assert message in refused(capsys, "evaluate", config, "--compare", source)
    assert "--num cannot be combined with --compare" in refused(
        capsys, "evaluate", config, "--compare", "AiM-B", "--num", "4"
    )


DAMAGES = [
    ("results.json", {"protocol": {"x": {"features": {}}}, "metrics": {}}),
    ("results.json", {"protocol": {"x": {**PROTOCOL, "metrics": ["fid_5"]}}, "metrics": {}}),
    ("results.json", {"protocol": {"x": {**PROTOCOL, "metrics": 3}}, "metrics": {}}),
    ("results.json", {"protocol": {}, "metrics": {"fid_5": "high"}}),
    ("a.json", record(features=3)),
    ("a.json", record(reference={})),
]


@pytest.mark.parametrize(("name", "content"), DAMAGES)
def test_other_content_than_scores_is_one_line(tmp_path, name, content):
    assert_user_error(f"{name} was not written by this project", row, write(tmp_path / name, content))


@pytest.mark.parametrize("content", [record("high"), record({"fid_5": "high"}), {"format": "aim_lightning.scores/1"}])
def test_a_record_without_metrics_or_protocol_is_refused(tmp_path, content):
    assert_user_error("a.json is damaged: it has no protocol or no metrics", row, write(tmp_path / "a.json", content))


def test_faults_of_later_sources_are_reported_before_an_image_set_is_scored(config, workspace, tmp_path, capsys):
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros((8, 4, 4, 3), np.uint8))
    error = refused(capsys, "evaluate", config, "--compare", tmp_path / "samples.npz", "nothing-*")
    assert "nothing-* matches nothing" in error and not list((workspace / "runs").glob("given/samples-*"))


def test_one_process_compares_runs_records_published_rows_and_image_sets(config, workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    images = np.random.default_rng(0).integers(0, 256, (3, 24, 4, 4, 3), dtype=np.uint8)
    for seed in (0, 1):
        np.savez(tmp_path / f"seed{seed}.npz", arr_0=images[seed])
    np.savez(tmp_path / "reference.npz", arr_0=images[2])
    options = ("--reference", tmp_path / "reference.npz", "--cache", workspace / "cache", "--out", tmp_path / "out")
    assert call("evaluate", config, "--num", 24, "--reference", tmp_path / "reference.npz") == 0
    sources = ["small/main", "AiM-B", tmp_path / "seed*.npz", tmp_path / "seed0.npz"]
    words = ("-m", "aim_lightning", "evaluate", "--config", config, "--compare", *sources, *options)
    process = python(*words)
    assert process.returncode == 0, process.stderr
    files = [tmp_path / "out" / f"comparison.{end}" for end in ("md", "csv", "png")]
    assert process.stdout.splitlines()[-1] == f"results: {', '.join(map(str, files))}"
    rows = list(csv.DictReader(files[1].open()))
    assert [line["name"] for line in rows] == list(map(str, sources))
    distance = [line["fd_effnet_lite0_24"] for line in rows]
    assert distance[1] == "" and rows[2]["fd_effnet_lite0_24_count"] == "2" and rows[1]["fid_50k"] == "3.52"
    records = sorted((workspace / "runs/given").glob("seed*/scores.json"))
    scores = [json.loads(path.read_text())["metrics"]["fd_effnet_lite0_24"] for path in records]
    assert float(distance[3]) == scores[0] and float(distance[2]) == pytest.approx(np.mean(scores))
    assert float(rows[2]["fd_effnet_lite0_24_std"]) == pytest.approx(np.std(scores, ddof=1))
    with Image.open(files[2]) as plot:
        assert plot.size[0] > 300
