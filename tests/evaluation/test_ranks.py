"""Errors of one rank of an evaluation are raised on all ranks."""

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_user_error
from metrics.builders import on_ranks
from torch import multiprocessing

from aim_lightning.callbacks.training.stop_request import ValidationStop, between
from aim_lightning.cli import main as cli
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import TransientError, lost_rank


def numbers(count: int, broken: int | None = None):
    for number in range(count):
        if number == broken:
            raise TransientError(f"item {number} cannot be read")
        yield number


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_single_process_only_does_the_work():
    assert ProcessGroup().run_on_all(lambda: 3) == 3
    assert_user_error("item 0", ProcessGroup().run_on_all, lambda: list(numbers(1, 0)))


def read_items(rank: int) -> None:
    """Rank 1 reads a broken item, with and without rounds in which the ranks take part after every item."""
    together, validation_stop = ProcessGroup(), ValidationStop(0)
    trainer = SimpleNamespace(callbacks=[validation_stop])
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    validation_stop.setup(SimpleNamespace(world_size=2, strategy=strategy), None, "validate")
    assert together.run_on_all(lambda: rank) == rank
    for items in (iter, lambda numbers: between(trainer, numbers, "a test")):
        read = []
        with pytest.raises(TransientError, match=r"^item 2 cannot be read$"):
            together.run_on_all(lambda items=items, read=read: read.extend(items(numbers(5, 2 if rank else None))))
        assert together.gather(len(read)) == [5, 2]
    for work in (together.run_on_all, together.on_rank0):
        with pytest.raises(OSError, match="No space left"):  # on both ranks; NCCL would wait half an hour
            work(lambda: None if rank else full())


@pytest.mark.slow
def test_an_error_of_one_rank_is_raised_on_all_once_all_have_finished(tmp_path):
    on_ranks(read_items, tmp_path)


def lose_a_rank(rank: int, directory: str) -> None:
    """Rank 1 exits without notice; rank 0 notices it in a command."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    assert ProcessGroup().gather(rank) == [0, 1]
    exchanged = Path(directory, "exchanged")  # rank 0 has finished the first exchange
    if rank == 1:
        while not exchanged.exists():
            time.sleep(0.01)
        os._exit(0)
    exchanged.touch()
    cli.run = lambda argv: ProcessGroup().gather(rank)
    os._exit(0 if cli.main([]) == 1 else 1)  # without Python's end, at which a thread of gloo may abort the process


@pytest.mark.long
def test_a_lost_process_is_reported_in_one_line(tmp_path, capfd):
    multiprocessing.spawn(lose_a_rank, (str(tmp_path),), nprocs=2)
    error = capfd.readouterr().err
    assert "rank 0: another rank exited" in error and "Traceback" not in error
    assert not lost_rank(RuntimeError("connection closed by peer")) and not lost_rank(OSError("gloo: broken pipe"))
