"""The Makefile's own answers; nothing is installed for them."""

import re
import subprocess

import pytest
from conftest import ROOT


def make(*words):
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True)


def test_bare_make_lists_every_target():
    listed = make().stdout
    named = [
        line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ":" in line and " ## " in line
    ]
    assert len(named) > 30 and all(f"  {target} " in listed for target in named)
    assert make("help").stdout == listed


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_pages_name_the_command_where_make_install_puts_it(page):
    assert not re.search(r"(?<!\.venv/bin/)\baim-lightning [a-zC]", page.read_text())


@pytest.mark.parametrize("words", [["train"], ["validate", "EXP=nothing"], ["sweep"]])
def test_a_missing_experiment_is_named_before_anything_is_installed(words, tmp_path):
    done = make(*words, f"VENV={tmp_path / 'venv'}")
    assert done.returncode == 2 and "set EXP to one of:" in done.stderr and "demo_aim" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("target", ["slurm", "slurm-status", "slurm-cancel"])
def test_everything_about_jobs_reads_the_site_s_file(target):
    """It may set runs_root: without it there would be no jobs."""
    for words, name in (([], "gpu"), (["CLUSTER=site"], "site")):
        shown = make("-n", target, "EXP=demo_aim", "RUN=a", "ARGS=--seed_everything 1", *words).stdout
        assert "--run a --seed_everything 1 " in shown and f"--config configs/cluster/{name}.yaml" in shown
