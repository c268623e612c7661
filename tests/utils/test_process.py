"""Which process is the first, and what its start and end leave out."""

import gc
import subprocess
import sys

import pytest
from conftest import ROOT

from aim_lightning.utils.process import RANKS, STEP, ProcessRank, is_rank_zero, launched_rank, no_collections

SRUN = {"SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "codes"}
LAUNCHERS = ("WORLD_SIZE", "SLURM_NTASKS", *STEP, "SLURM_LOCALID", "SLURM_JOB_NAME")


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # Lightning's child inside an sbatch script
        ({"SLURM_PROCID": "3"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),
    ],
)
def test_rank_zero(monkeypatch, environment, first):
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_rank_zero() is first


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, ProcessRank(5, 8, 1)),
        ({**SRUN, "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}, ProcessRank(3, 4, 1)),
        ({**SRUN, "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2"}, ProcessRank(0, 2, 0)),
        ({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_JOB_NAME": "zsh"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, None),  # the script that sbatch runs
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, ProcessRank(1, 2, 0)),
        ({"LOCAL_RANK": "1"}, None),
    ],
)
def test_place_says_what_the_launcher_says(monkeypatch, environment, place):
    for name in (*RANKS, *LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched_rank() == place


def test_nothing_is_collected_during_imports_and_then_all_is_as_before():
    with no_collections(), no_collections():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), no_collections():
        raise ImportError("a broken installation")
    assert gc.isenabled()


def test_the_end_of_the_process_collects_nothing_that_was_imported():
    frozen = "atexit.register(lambda: print(gc.get_freeze_count() > 10_000))"  # registered first, it runs last
    code = f"import atexit, gc; {frozen}; import aim_lightning.__main__; print(gc.get_freeze_count())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "True"], done.stderr
