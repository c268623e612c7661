"""Checks that all ranks have the same environment, configuration and directory."""

import dataclasses

import pytest

from aim_lightning.cluster import rank_consistency
from aim_lightning.cluster.rank_consistency import RankInfo, faults, late_views, task_fault, versions
from aim_lightning.cluster.slurm_api import Job

FIRST = RankInfo("n1", 0, "cuda:0", {"torch": "2.9"}, "abc", "step=00000004.ckpt")
SECOND = dataclasses.replace(FIRST, node="n2", rank=1)


def test_equal_ranks_have_no_faults():
    assert faults([FIRST, SECOND], "runs/x") == []


def test_packages_that_select_a_backend_are_compared_installed_or_not():
    """`auto` takes mamba-ssm where it is installed: one node without it would compute something else."""
    installed = versions()
    assert {"triton", "mamba-ssm", "causal-conv1d", "torchvision", "webdataset"} <= installed.keys()
    first = dataclasses.replace(FIRST, versions=installed | {"mamba-ssm": "2.3.1"})
    (line,) = faults([first, dataclasses.replace(SECOND, versions=installed)], "runs/x")
    assert line == f"node n2, rank 1: mamba-ssm is {installed['mamba-ssm']}, on node n1 it is 2.3.1"


DIRECTORY = "node n2, rank 1: runs/x is not the directory that node n1 writes to; set runs_root"
CASES = [
    ({"versions": {"torch": "2.8"}}, "node n2, rank 1: torch is 2.8, on node n1 it is 2.9"),
    ({"configuration": "xyz"}, "node n2, rank 1: its configuration differs from that of node n1 (rank 0)"),
    ({"sees_run_directory": False}, DIRECTORY),
    ({"node": "n1"}, "node n1: 2 ranks share device cuda:0"),
]


@pytest.mark.parametrize(("change", "line"), CASES)
def test_each_fault_is_one_line_that_names_the_node(change, line):
    (fault,) = faults([FIRST, dataclasses.replace(SECOND, **change)], "runs/x")
    assert fault.startswith(line)


def test_an_old_state_of_the_shared_directory_is_a_transient_error():
    late = dataclasses.replace(SECOND, start="the beginning")
    assert faults([FIRST, late], "runs/x") == [] and late_views([FIRST, SECOND]) == []
    (line,) = late_views([FIRST, late])
    assert line.startswith("node n2, rank 1: it would start from the beginning, rank 0 on node n1 from step=00000004")


def test_the_step_must_fit_the_configuration():
    job = Job("1", 0, "n1", tasks=8, nodes=2)
    assert task_fault(job, 2, 4, 4) is None and task_fault(None, 9, 9, 0) is None
    assert task_fault(job, 1, 4, 4) == (
        "node n1: srun started 8 tasks on 2 nodes; trainer.num_nodes 1 x trainer.devices 4 needs 4 tasks on 1"
    )
    assert "node n1: a task sees 1 GPUs, trainer.devices is 4" in task_fault(job, 2, 4, 1)


def test_hashes_follow_the_content(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    before = rank_consistency.source_hash(tmp_path)
    (tmp_path / "a.py").write_text("x = 2\n")
    assert rank_consistency.source_hash(tmp_path) != before
    configurations = ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1})
    first, same, other = map(rank_consistency.configuration_hash, configurations)
    assert first == same != other
