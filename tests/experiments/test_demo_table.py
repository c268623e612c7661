"""Test the table at the end of `make demo` on invented results."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT


def table(runs, num=500):
    command = [sys.executable, ROOT / "experiments/demo_table.py", "--runs_root", runs, "--num", str(num)]
    return subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})


@pytest.fixture
def runs(tmp_path):
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


def test_the_table_has_one_number_of_samples_and_figures_of_both_stages(runs):
    result = table(runs)
    assert result.returncode == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "fd_effnet_lite0_500 400.0 2000.0 60.0" in lines and "class_agreement_500 0.720 0.100 0.900" in lines
    assert "codebook usage 75% of 512" in lines
    assert "validation loss 2.50 bits per code of 9 (to reach: at most 4)" in lines
    assert "agreement against real 0.80 (to reach: at least 0.85)" in lines


def test_a_missing_metric_or_run_is_one_line(runs):
    result = table(runs, 300)
    assert result.returncode == 1 and "fd_effnet_lite0_300_untrained; run make validate" in result.stderr
    for name in ("demo_aim/main/config.yaml", "demo_tokenizer/main/results.json"):
        (runs / name).unlink()
        result = table(runs)
        assert result.returncode == 1 and result.stdout == "" and result.stderr.count("\n") == 1
        assert f"{name} does not exist" in result.stderr
