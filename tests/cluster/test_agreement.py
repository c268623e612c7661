"""All ranks hear the same answer at the same boundary."""

import pytest
import torch
from torch import multiprocessing

from aim_lightning.callbacks.training.preemption import Agreement
from aim_lightning.cluster import signals


def test_a_single_rank_hears_itself_at_once():
    assert [Agreement(1).exchange(code) for code in (0, 2)] == [0, 2]


def ranks(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    agreement, heard = Agreement(2), []
    for boundary in range(6):
        mine = signals.USR1 if (rank, boundary) == (1, 2) else signals.NONE
        heard.append(agreement.exchange(mine))
        if heard[-1]:
            break
    assert heard == [0, 0, 0, 2], heard
    assert agreement.exchange(0) == 0 and agreement.finish() == 0
    torch.distributed.destroy_process_group()


def ranks_in_a_long_pause(rank: int, directory: str) -> None:
    """A boundary, then questions inside an evaluation; the signal comes to one rank before the second question."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/pause", rank=rank, world_size=2)
    agreement = Agreement(2)
    heard = [agreement.exchange(signals.NONE), agreement.now(signals.NONE)]
    heard.append(agreement.now(signals.TERM if rank == 1 else signals.NONE))
    assert heard == [0, 0, signals.TERM], heard
    assert agreement.finish() == 0
    # A signal just before the boundary's exchange is heard at the first question.
    heard = [agreement.exchange(signals.USR1 if rank == 0 else signals.NONE), agreement.now(signals.NONE)]
    assert heard == [0, signals.USR1] and agreement.pending is None, heard
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_in_a_long_pause_all_hear_at_once(tmp_path):
    assert Agreement(1).now(signals.TERM) == signals.TERM
    multiprocessing.spawn(ranks_in_a_long_pause, (str(tmp_path),), nprocs=2)


@pytest.mark.slow
def test_what_one_rank_has_seen_all_hear_one_boundary_later(tmp_path):
    multiprocessing.spawn(ranks, (str(tmp_path),), nprocs=2)
