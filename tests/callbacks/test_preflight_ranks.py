"""Ranks that cannot reach each other, or do not see the same state, before the first batch."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_user_error

from aim_lightning.callbacks.training import preflight
from aim_lightning.callbacks.training.preflight import Preflight
from aim_lightning.cli import fit_lifecycle
from aim_lightning.cli.fit_lifecycle import FitLifecycle
from aim_lightning.cluster import signals
from aim_lightning.data.stream import BatchPlan
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.runs.resume_policy import Decision
from aim_lightning.utils.errors import TransientError, UserError


def check(run_dir, rank):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data = SimpleNamespace(plan=BatchPlan(8, 2, 1))
    trainer = SimpleNamespace(
        world_size=2, global_rank=rank, is_global_zero=rank == 0, strategy=strategy, datamodule=data
    )
    Preflight(str(run_dir), {}, "a.ckpt").setup(trainer, None, "fit")


@pytest.fixture
def network(monkeypatch):
    """Replace torch.distributed by two ranks, of which this process is one; `other` changes fields of the other one."""

    def broadcast(values, src):
        values[0] = values[0] or ".preflight-there"

    def gather(ranks, mine):
        ranks[:] = [dataclasses.replace(mine, rank=rank, **(network.other if rank else {})) for rank in (0, 1)]

    def reduce(total):
        total.fill_(network.total)

    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setattr(preflight.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(preflight, "SHARED_SECONDS", 0.2)
    for name, call in (("broadcast_object_list", broadcast), ("all_gather_object", gather), ("all_reduce", reduce)):
        monkeypatch.setattr(torch.distributed, name, call)
    for name, value in (("is_initialized", True), ("get_rank", 0), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    network = SimpleNamespace(other={}, total=3)
    return network


def fails(*_, **__):
    raise RuntimeError("connect: Connection refused\nmore")


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / ".preflight-there").touch()
    return tmp_path


def test_ranks_that_agree_go_on_and_leave_nothing(network, run_dir):
    for rank in (1, 0):
        check(run_dir, rank)
    assert not list(run_dir.iterdir())


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("call", ["broadcast_object_list", "all_gather_object", "all_reduce"])
def test_the_rank_whose_network_fails_names_its_node(network, run_dir, monkeypatch, call, rank):
    monkeypatch.setattr(torch.distributed, call, fails)
    with pytest.raises(TransientError, match=rf"node n7, rank {rank}: .* failed \(connect: Connection refused\)$"):
        check(run_dir, rank)


def test_a_wrong_sum_is_reported_by_its_rank(network, run_dir):
    network.total = 4
    with pytest.raises(UserError, match="node n7, rank 1: the first all-reduce gave 4, not 3"):
        check(run_dir, 1)


@pytest.mark.parametrize(
    ("other", "error", "code"), [({"start": "old.ckpt"}, TransientError, 74), ({"configuration": "x"}, UserError, 2)]
)
def test_rank_zero_prints_shared_errors_and_all_ranks_exit_with_one_code(network, run_dir, other, error, code):
    network.other = {**other, "node": "n8"}
    with pytest.raises(error, match="node n8, rank 1: ") as caught:
        check(run_dir, 0)
    assert type(caught.value) is error
    (run_dir / ".preflight-there").touch()
    with pytest.raises(SystemExit) as ended:
        check(run_dir, 1)
    assert ended.value.code == code


@pytest.fixture
def lifecycle(monkeypatch, tmp_path):
    monkeypatch.setattr(fit_lifecycle.time, "sleep", lambda seconds: None)
    return FitLifecycle(SimpleNamespace(run_directory=RunDirectory("x", "main", tmp_path)), SimpleNamespace())


FAULTS = [
    (TransientError("node n7, rank 1: the first broadcast failed (timeout)"),) * 2,
    (
        torch.distributed.DistNetworkError("The client socket has timed out\nmore"),  # before any callback
        "node n7, rank 1: the ranks cannot reach each other (The client socket has timed out)",
    ),
    (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        "loader process 7 ended (killed), possibly for lack of memory; "
        "lower data.num_workers or give the job more memory",
    ),
]


@pytest.mark.parametrize(("fault", "line"), FAULTS)
def test_fit_ends_with_the_code_that_requeues_the_job(lifecycle, monkeypatch, capsys, own_signals, fault, line):
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setenv("SLURM_PROCID", "1")
    with lifecycle:
        raise fault
    assert lifecycle.exit_code == 74 and capsys.readouterr().err == f"error: {line}\n"


def test_a_refused_run_is_reported_by_rank_zero(lifecycle, monkeypatch):
    """Another rank reports it only if rank 0 has not ended the job by then."""
    refused = Decision("refuse", notes=["the configuration changed"])
    monkeypatch.setenv("SLURM_PROCID", "1")
    for signal, end in ((signals.TERM, SystemExit), (signals.NONE, UserError)):
        monkeypatch.setattr(signals, "_received", signal)
        with pytest.raises(end):
            lifecycle._follow(refused)
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert_user_error("main is left as it is: the configuration changed", lifecycle._follow, refused)
