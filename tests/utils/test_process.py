"""Ranks from the environment, garbage collection at start and end, and background threads."""

import gc
import os
import sys
import threading
import time

import pytest
from conftest import python

from aim_lightning.utils import process
from aim_lightning.utils.process import RANKS, STEP, ProcessRank, is_rank_zero, launched_rank, no_collections, prefetch

SRUN = {"SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "codes"}
LAUNCHERS = ("RANK", "WORLD_SIZE", "SLURM_NTASKS", *STEP, "SLURM_LOCALID", "SLURM_JOB_NAME")


# Environment, rank 0 or not, and the rank that the launcher assigned.
CASES = [
    ({}, True, None),
    ({"LOCAL_RANK": "1"}, False, None),
    ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False, None),  # Lightning's child inside an sbatch script
    ({"SLURM_PROCID": "3"}, False, None),
    ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False, None),
    ({"RANK": "8", "LOCAL_RANK": "0"}, False, None),
    ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True, None),
    ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, False, ProcessRank(5, 8, 1)),
    ({**SRUN, "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}, False, ProcessRank(3, 4, 1)),
    ({**SRUN, "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2"}, True, ProcessRank(0, 2, 0)),
    ({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_JOB_NAME": "zsh"}, True, None),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, True, None),  # the script that sbatch runs
    ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, False, ProcessRank(1, 2, 0)),
]


@pytest.mark.parametrize(("environment", "rank_zero", "rank"), CASES)
def test_the_rank_is_that_of_the_launcher(monkeypatch, environment, rank_zero, rank):
    for name in (*RANKS, *LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_rank_zero() is rank_zero and launched_rank() == rank


def test_garbage_collection_pauses_during_imports():
    with no_collections(), no_collections():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), no_collections():
        raise ImportError("a broken installation")
    assert gc.isenabled()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Triton's bindings would report leaks")
def test_imported_objects_are_not_collected_at_exit():
    frozen = "atexit.register(lambda: print(gc.get_freeze_count() > 10_000))"  # registered first, it runs last
    code = f"import atexit, gc; {frozen}; import aim_lightning.__main__; print(gc.get_freeze_count())"
    result = python("-c", code)
    assert result.stdout.split() == ["0", "True"], result.stderr


def test_prefetch_keeps_the_order_and_its_depth():
    fetched = []
    items = prefetch((fetched.append(i) or i for i in range(9)), 2)
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(fetched) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert fetched == [0, 1, 2], "two ahead, no more"
    assert list(items) == list(range(1, 9))


def test_prefetch_raises_after_the_items_before_an_error_and_leaves_no_thread():
    def broken():
        yield from (1, 2)
        raise ValueError("three")

    before, seen = threading.active_count(), []
    with pytest.raises(ValueError, match="three"):
        seen.extend(prefetch(broken(), 2))
    assert seen == [1, 2]
    items = prefetch(iter(range(100)), 2)
    next(items)
    items.close()
    assert threading.active_count() == before


POLICIES = [(0, 4, None), (1, 3, None), (1, 4, "passive"), (9, 1, "passive")]


@pytest.mark.parametrize(("running", "threads", "policy"), POLICIES)
def test_openmp_waits_passively_only_where_processors_are_short(monkeypatch, running, threads, policy):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(process, "_busy_processors", lambda: running)
    process.choose_wait_policy()
    assert os.environ.pop("OMP_WAIT_POLICY", None) == policy
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    process.choose_wait_policy()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
