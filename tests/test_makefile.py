"""Test what the Makefile prints itself; nothing is installed for it."""

import json
import os
import re
import shutil
import subprocess
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import ROOT
from helpers import write_program

from aim_lightning.callbacks.logging.tensorboard import CHARTS
from aim_lightning.data.images.emoji import PACKAGE


def make(*words, **more):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MAKE"))} | more
    return subprocess.run([shutil.which("make"), *words], cwd=ROOT, env=env, capture_output=True, text=True)


def test_bare_make_lists_every_target():
    listed = make().stdout
    lines = (ROOT / "Makefile").read_text().splitlines()
    named = [line.split(":")[0] for line in lines if ":" in line and " ## " in line]
    assert len(named) > 30 and all(f"  {target} " in listed for target in named)
    assert make("help").stdout == listed


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_the_command_where_make_install_puts_it(page):
    assert not re.search(r"(?<!\.venv/bin/)\baim-lightning [a-zC]", page.read_text())


@pytest.mark.parametrize("words", [["train"], ["validate", "EXP=nothing"], ["sweep"]])
def test_a_missing_experiment_is_named_before_anything_is_installed(words, tmp_path):
    done = make(*words, f"VENV={tmp_path / 'venv'}")
    assert done.returncode == 2 and "set EXP to one of:" in done.stderr and "demo_aim" in done.stderr
    assert ("there is no experiment nothing;" in done.stderr) == ("EXP=nothing" in words)
    assert not (tmp_path / "venv").exists()


def test_the_demo_suite_makes_its_codes_first(tmp_path):
    def shown(*words):
        return make("-n", "suite", f"VENV={tmp_path}", *words).stdout

    tokenizer = "fit --config experiments/demo_tokenizer.yaml"
    assert tokenizer in shown("SUITE=demo").partition("suite demo")[0]
    assert tokenizer not in shown("SUITE=demo", "DRY=1") + shown("SUITE=scaling")


def test_emoji_are_fetched_in_the_version_that_is_checked(tmp_path):
    shown = make("-n", "data-emoji", f"PACKAGE={tmp_path / 'absent.tgz'}").stdout
    assert f"npm pack --silent --pack-destination data {PACKAGE}\n" in shown and f"--package {tmp_path}" in shown


@pytest.mark.parametrize("target", ["slurm", "slurm-status", "slurm-cancel"])
def test_everything_about_jobs_reads_the_site_s_file(target):
    """Read the site's file, which may set runs_root: without it no job of the run is listed."""
    for words, name in (([], "gpu"), (["CLUSTER=site"], "site")):
        shown = make("-n", target, "EXP=demo_aim", "RUN=a", "ARGS=--seed_everything 1", *words).stdout
        assert "--run a --seed_everything 1 " in shown and f"--config configs/cluster/{name}.yaml" in shown


CASES = [
    ({"python3.13": 0, "python3.12": 0}, "creating venv with python3.13"),
    ({"python3.13": 1, "python3.11": 0, "python3": 0}, "creating venv with python3.11"),
    ({"python3.12": 1, "python3": 0}, "creating venv with python3\n"),
    ({"python3": 1}, "there is no Python from 3.11 on with venv; install one"),
]


@pytest.mark.parametrize(("codes", "words"), CASES)
def test_the_newest_python_with_venv_is_taken(tmp_path, codes, words):
    """Skip interpreters that end with an error code because they are too old or lack venv."""
    (tmp_path / "sh").symlink_to(shutil.which("sh"))
    for name, code in codes.items():
        (tmp_path / name).write_text(f"#!{shutil.which('sh')}\n[ $1 != -m ] && exit {code}; exit 7\n")
        (tmp_path / name).chmod(0o755)
    done = make("install", "VENV=venv", PATH=str(tmp_path))
    assert done.returncode == 2 and words in done.stdout + done.stderr
    assert not (ROOT / "venv").exists()


def test_an_installation_reports_the_free_space_of_its_disk(tmp_path):
    (tmp_path / "venv/bin").mkdir(parents=True)
    python = write_program(tmp_path / "venv/bin/python", "exit 1")
    done = make("install", f"VENV={tmp_path / 'venv'}")
    free = re.search(rf"installing into {tmp_path}/venv \(up to 7 GB .*; (\d+) GB are free\)", done.stdout)
    assert free and int(free[1]) == pytest.approx(shutil.disk_usage(python).free / 1e9, abs=3)
    assert done.returncode == 2 and not (tmp_path / "venv/.installed").exists()


EXTRAS = [(["install"], ""), (["demo"], ""), (["test"], "dev"), (["lint"], "dev"), (["weights-dinov2"], "dinov2")]


@pytest.mark.parametrize(("words", "extra"), [*EXTRAS, (["app", "EXP=demo_aim"], "app")])
def test_only_the_targets_that_need_optional_packages_install_them(tmp_path, words, extra):
    steps = make("-n", *words, f"VENV={tmp_path / 'venv'}").stdout
    assert re.findall(r"-e '?\.(?:\[(.+)\])?'?\n", steps) == ["", extra][: 1 + bool(extra)]


@pytest.mark.parametrize("has_nvcc", [False, True])
def test_causal_conv1d_is_compiled_only_where_nvcc_is_present(tmp_path, has_nvcc):
    bin_ = tmp_path / "venv/bin"
    bin_.mkdir(parents=True)
    variables = "$MAMBA_SKIP_CUDA_BUILD $MAMBA_FORCE_BUILD $CAUSAL_CONV1D_FORCE_BUILD"
    stub = f"#!{shutil.which('sh')}\necho {variables} $@\n"
    for path in (bin_ / "python", bin_ / "aim-lightning", *([tmp_path / "nvcc"] if has_nvcc else [])):
        path.write_text(stub)
        path.chmod(0o755)
    for program in ("sh", "echo"):
        (tmp_path / program).symlink_to(shutil.which(program))
    (tmp_path / "venv/.installed").touch()
    lines = make("install-cuda", f"VENV={tmp_path / 'venv'}", PATH=str(tmp_path)).stdout.splitlines()
    assert lines[0].startswith("installing mamba-ssm==2.3.1") and lines[-1] == "doctor"
    assert lines[1].endswith("setuptools wheel ninja"), "tools of builds without isolation"
    options = "-m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --no-cache-dir"
    assert lines[2] == f"TRUE TRUE {options} mamba-ssm==2.3.1 einops==0.8.2"
    step = "compiling causal-conv1d==1.7.0" if has_nvcc else "no nvcc on PATH: causal-conv1d is left"
    assert lines[3].startswith(step)
    assert lines[4:-1] == ([f"TRUE {options} causal-conv1d==1.7.0"] if has_nvcc else [])


def test_tensorboard_prints_an_address_that_pins_known_curves():
    address = re.search(r"http://localhost:6006/\S+", make("-n", "tensorboard").stdout)[0].rstrip("'")
    pins = json.loads(parse_qs(urlsplit(address).query)["pinnedCards"][0])
    tags = {tag for charts in CHARTS.values() for chart in charts.values() for tag in chart["tags"]}
    assert {"val/loss", "val/psnr"} < {pin["tag"] for pin in pins} < tags and urlsplit(address).fragment == "timeseries"
