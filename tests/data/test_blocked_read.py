"""Reads that never end: SIGTERM and Ctrl-C end the process all the same."""

import multiprocessing
import os
import signal
import time

import pytest
from data.test_tokens import module
from helpers import write_tokens
from torch.utils.data import Dataset

from aim_lightning.cluster import signals
from aim_lightning.data.stream_datamodule import BatchLoader

FORK = multiprocessing.get_context("fork")  # a real process without the seconds that importing torch takes


class EmptyPipe(Dataset):
    """One row, whose read blocks as on a network file system without its server."""

    def __init__(self):
        self.pipe = os.pipe()

    def __len__(self):
        return 1

    def __getitem__(self, row):
        return os.read(self.pipe[0], 1)


def image_loader(root):
    return BatchLoader(EmptyPipe(), num_workers=0)


def worker_loader(root):
    return BatchLoader(EmptyPipe(), num_workers=1)


def shard_loader(root):
    for split in ("train", "val"):
        write_tokens(root / split, [8, 8])
    (root / "train" / "tokens-000001.tar").unlink()
    os.mkfifo(root / "train" / "tokens-000001.tar")
    return module(f"pipe:timeout 60 cat {root}/{{}}").train_dataloader()


def read(loader, seconds, started, record):
    signals._installed, signals.READ_SECONDS = False, seconds  # another test of this process may have installed them
    signal.signal(signal.SIGINT, signal.default_int_handler)  # torch's process launcher leaves its own
    signals.install()
    signals.on_abort = lambda code: record.write_text(str(code))
    with signals.graceful_interrupt():
        started.set()
        list(loader)


CASES = [
    (image_loader, [signal.SIGTERM], 0.3, 143),
    (worker_loader, [signal.SIGTERM], 0.3, 143),
    (image_loader, [signal.SIGINT], 0.3, 130),
    (worker_loader, [signal.SIGINT, signal.SIGINT], 60, 1),
    (shard_loader, [signal.SIGINT, signal.SIGINT], 60, 1),
]


@pytest.mark.parametrize(("make_loader", "sent", "seconds", "code"), CASES)
def test_signals_end_a_blocked_read(tmp_path, capfd, make_loader, sent, seconds, code):
    started = FORK.Event()
    process = FORK.Process(target=read, args=(make_loader(tmp_path), seconds, started, tmp_path / "code"))
    process.start()
    assert started.wait(60)
    time.sleep(0.5)  # until the read blocks
    assert process.is_alive()
    for signum in sent:
        os.kill(process.pid, signum)
        time.sleep(0.1)
    process.join(20)
    stuck = process.is_alive()
    process.kill()
    assert not stuck and process.exitcode == code
    if code > 1:
        assert "s; aborted without a checkpoint, check the disk" in capfd.readouterr().err
        assert (tmp_path / "code").read_text() == str(code)
