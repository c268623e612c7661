"""The agreement of all ranks on a signal, and the seconds that `Preemption` measures for the next job."""

from types import SimpleNamespace

import pytest
import torch
from torch import multiprocessing

from aim_lightning.callbacks.training import preemption
from aim_lightning.callbacks.training.preemption import Preemption
from aim_lightning.callbacks.training.stop_request import StopRequest
from aim_lightning.cluster import job_registry, signals


def test_the_first_step_of_a_process_is_no_pause(tmp_path, monkeypatch):
    """It compiles kernels for minutes: the check before the next submission would refuse the signal lead."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(preemption.time, "perf_counter", lambda: clock.now)
    trainer = SimpleNamespace(is_global_zero=True, global_step=40, callbacks=[])
    callback = Preemption(str(tmp_path))
    callback._record(trainer)
    assert job_registry.read_timings(tmp_path) == {}
    # an evaluation before the first step, the first step, then ordinary ones and a validation
    for seconds, step in ((0, 40), (5, 40), (300, 41), (2, 42), (2, 43), (30, 44), (2, 45)):
        clock.now, trainer.global_step = clock.now + seconds, step
        callback._measure(trainer)
    timings = job_registry.read_timings(tmp_path)  # written during the pause, in which a job may end
    assert timings["longest_pause_seconds"] == 30.0
    callback._record(trainer)
    timings = job_registry.read_timings(tmp_path)
    assert (timings["longest_pause_seconds"], timings["step_seconds"]) == (30.0, 2.0)


def test_a_single_rank_gets_its_own_signal_immediately():
    assert [StopRequest(1).exchange(signal) for signal in (signals.NONE, signals.USR1)] == [0, 2]
    assert StopRequest(1).agree(signals.TERM) == signals.TERM
    for busy in (True, False):
        request = StopRequest(1)
        assert request.agree(signals.NONE, busy) == signals.NONE and request.any_busy == busy


def test_ranks_of_a_single_node_agree_too(tmp_path, monkeypatch):
    groups = []
    monkeypatch.setattr(torch.distributed, "new_group", lambda backend: groups.append(backend))
    monkeypatch.setattr(preemption, "keep_handlers", lambda trainer: None)
    for world_size in (1, 4):
        Preemption(str(tmp_path)).setup(SimpleNamespace(world_size=world_size, num_nodes=1), None, "fit")
    assert groups == ["gloo"]


def start_group(rank: int, directory: str) -> StopRequest:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    return StopRequest(2)


def exchange_at_boundaries(rank: int, directory: str) -> None:
    request, agreed = start_group(rank, directory), []
    for boundary in range(6):
        received = signals.USR1 if (rank, boundary) == (1, 2) else signals.NONE
        agreed.append(request.exchange(received))
        if agreed[-1]:
            break
    assert agreed == [0, 0, 0, 2], agreed
    assert request.exchange(0) == 0 and request.finish() == 0
    torch.distributed.destroy_process_group()


def agree_in_a_long_pause(rank: int, directory: str) -> None:
    """Exchange at a boundary, then in an evaluation; rank 1 receives the signal before the second agreement."""
    request = start_group(rank, directory)
    agreed = [request.exchange(signals.NONE), request.agree(signals.NONE)]
    agreed.append(request.agree(signals.TERM if rank == 1 else signals.NONE))
    assert agreed == [0, 0, signals.TERM], agreed
    assert request.finish() == 0
    # A signal just before the boundary's exchange reaches all ranks at the first agreement.
    agreed = [request.exchange(signals.USR1 if rank == 0 else signals.NONE), request.agree(signals.NONE)]
    assert agreed == [0, signals.USR1] and request.pending is None, agreed
    # One busy rank keeps both in the loop.
    for busy, expected in ((rank == 1, True), (False, False)):
        assert request.agree(signals.NONE, busy) == 0 and request.any_busy == expected
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("work", [exchange_at_boundaries, agree_in_a_long_pause])
def test_all_ranks_agree_at_the_same_boundary(tmp_path, work):
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
