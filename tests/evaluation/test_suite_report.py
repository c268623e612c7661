"""Tables and charts of suites: guidance per row, sizes, and fitted power laws."""

import csv

import numpy as np
import pytest
from conftest import ROOT
from evaluation.small import CONFIG, write_inputs
from helpers import assert_user_error

from aim_lightning.cli import processes
from aim_lightning.cli.main import main
from aim_lightning.evaluation.report.comparison import Column, Row, Value
from aim_lightning.evaluation.report.power_law import fit
from aim_lightning.evaluation.report.suite import Variation, write_report
from aim_lightning.evaluation.report.table import read_suites, render
from aim_lightning.models import AiM, AiMConfig
from aim_lightning.runs.directory import RunDirectory

pytestmark = pytest.mark.filterwarnings("ignore:FrechetDistance", "ignore:.*Fabric.*")
TRAINING = """
  max_steps: 5
  max_epochs: -1
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
callbacks:
  checkpoints: {class_path: aim_lightning.callbacks.training.checkpoints.Checkpoints, init_args: {every_n_steps: 5}}
logger:
  tensorboard: {class_path: lightning.pytorch.loggers.TensorBoardLogger}
"""
SUITE = """
experiment: small.yaml
variations:
  guided: {}
  wide: {model.network.d_model: 64, model.label_dropout: 0}
evaluate: {num: 24, keep_images: false, cache: CACHE}
guidance: [1, 2.5]
power_law: {x: [parameters_in_millions, training_flops], y: val/loss}
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Return the path of a finished suite, whose commands ran in this process."""
    root = tmp_path_factory.mktemp("report")
    write_inputs(root)
    text = CONFIG.format(root=root).replace("trainer: {accelerator: cpu, devices: 1}", "trainer:\n  accelerator: cpu")
    (root / "small.yaml").write_text(text.rstrip() + "\n  devices: 1" + TRAINING)
    path = root / "s.yaml"
    path.write_text(SUITE.replace("CACHE", str(root / "cache")))

    def run_tasks(tasks, *_):
        return {name: 1 for name, commands in tasks.items() if any(main(command) for command in commands)}

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(processes, "run_tasks", run_tasks)
        assert main(["suite", str(path)]) == 0
    return path


def test_rows_are_variations_and_guidance_scales(suite):
    rows = list(csv.DictReader((suite.parent / "s/results.csv").open()))
    points = [(row["name"], float(row["cfg_scale"])) for row in rows]
    assert points == [("guided", 1), ("guided", 2.5), ("wide", 1)], "an untrained null class cannot guide"
    distances = [float(row["fd_effnet_lite0_24_raw"]) for row in rows]
    assert len(set(distances)) == 3
    assert rows[0]["val/loss"] == rows[1]["val/loss"] != rows[2]["val/loss"]
    assert (suite.parent / "s/guidance.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_has_training_flops_and_the_fits(suite):
    rows = {row["name"]: row for row in csv.DictReader((suite.parent / "s/results.csv").open())}
    config = AiMConfig(
        32, 2, vocab_size=16, num_classes=3, num_tokens=4, adaln="group", num_groups=2, d_state=8, headdim=16
    )
    steps, images = 5, 8
    assert float(rows["guided"]["training_flops"]) == steps * images * AiM(config).flops_per_image()
    text = (suite.parent / "s/table.md").read_text()
    assert text.count("- val/loss = ") == 2 and "training_flops^" in text
    assert (suite.parent / "s/scaling.png").read_bytes().startswith(b"\x89PNG")


def test_an_error_writes_nothing_and_no_curves_are_no_error(suite, tmp_path):
    for name in ("results.json", "checkpoints"):
        (tmp_path / "small/s-wide-0").mkdir(parents=True, exist_ok=True)
        (tmp_path / "small/s-wide-0" / name).symlink_to(suite.parent / "runs/small/s-wide-0" / name)
    report = {"wide": Variation([RunDirectory("small", "s-wide-0", tmp_path)], 10, 10, [])}
    law = {"x": ["width"], "y": "val/loss"}
    assert_user_error("wide has no positive, finite width", write_report, tmp_path / "out", report, False, law)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    for name in ("guidance.png", "other.png"):  # of an earlier call, of the user
        (tmp_path / "out" / name).touch()
    write_report(tmp_path / "out", report, False, {})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["other.png", "results.csv", "table.md"]


def test_the_page_shows_the_charts_of_recorded_suites(suite):
    (suite.parent / "t.yaml").write_text("# Not run.\nexperiment: x.yaml\n")
    suite.write_text(f"# A comparison.\n{suite.read_text()}")
    suites = {name: item for name, item in read_suites(suite.parent).items() if name in "st"}
    text = render({}, {}, suites)
    assert "- **s**: A comparison. ([suites/s.yaml](suites/s.yaml)): [curves.png](suites/s/curves.png), " in text
    assert text.count("![guidance.png](suites/s/guidance.png)") == 1 and "Not run. ([suites/t.yaml]" in text


def rows_of(points):
    return [Row(f"r{x}", {Column("size", "", ""): Value(x), Column("loss", "", ""): Value(y)}) for x, y in points]


def test_a_power_law_is_found_exactly():
    law = fit("size", "loss", rows_of([(x, 3 * x**-0.25) for x in (0.5, 2, 7)]))
    assert (law.exponent, law.intercept) == (pytest.approx(-0.25), pytest.approx(np.log(3)))
    assert str(law).startswith("loss = 3 * size^-0.2500: exponent -0.2500, intercept 1.0986")


@pytest.mark.parametrize(
    ("x", "points", "error"),
    [
        ("width", [(1, 1), (2, 1)], "r1 has no positive, finite width; use columns of size, loss"),
        ("size", [(1, 1), (2, 0)], "r2 has no positive, finite loss"),
        ("size", [(1, 1), (2, float("nan"))], "r2 has no positive, finite loss"),
        ("size", [(1, 1), (1, 2)], "size is equal for all variations"),
    ],
)
def test_columns_without_a_power_law_are_refused(x, points, error):
    assert_user_error(error, fit, x, "loss", rows_of(points))
