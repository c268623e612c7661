"""The end of `make demo`, on results that were made up."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT


def table(runs):
    command = [sys.executable, ROOT / "experiments/demo_table.py", "--runs_root", runs]
    return subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "COLUMNS": "120"})


@pytest.fixture
def runs(tmp_path):
    aim = {"val/bits_per_code": 2.5}
    for kind, distance, agreement in (("", 400.0, 0.72), ("_untrained", 2000.0, 0.1), ("_real", 60.0, 0.9)):
        aim |= {f"fd_effnet_lite0_500{kind}": distance, f"class_agreement_500{kind}": agreement}
    for stage, metrics in (("tokenizer", {"val/psnr": 22.5, "val/codebook_usage": 0.75}), ("aim", aim)):
        directory = tmp_path / f"demo_{stage}" / "main"
        directory.mkdir(parents=True)
        (directory / "results.json").write_text(json.dumps({"metrics": metrics}))
    configuration = {"model": {"init_args": {"network": {"vocab_size": 512}}}}
    (tmp_path / "demo_aim/main/config.yaml").write_text(json.dumps(configuration))
    return tmp_path


def test_everything_is_read_from_the_runs(runs):
    done = table(runs)
    assert done.returncode == 0, done.stderr
    for words in ("fd_effnet_lite0_500", "400.0", "2000.0", "0.720", "75% of 512", "2.50 bits per code of 9"):
        assert words in done.stdout
    assert "agreement against real    0.80  (to reach: at least 0.85)" in done.stdout


@pytest.mark.parametrize("gone", ["demo_tokenizer/main/results.json", "demo_aim/main/config.yaml"])
def test_a_run_that_is_not_there_is_one_line(runs, gone):
    (runs / gone).unlink()
    done = table(runs)
    assert done.returncode == 1 and "does not exist" in done.stderr and done.stderr.count("\n") == 1
