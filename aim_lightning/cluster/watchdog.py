"""End a rank that hangs, after printing the stacks of all threads."""

import faulthandler
import os
import sys
import threading
import time

from aim_lightning.cluster.requeue import HANG
from aim_lightning.utils import process

PRINT_SECONDS = 3.0  # time for the other ranks to print their stacks: the first rank to end ends all


class Watchdog:
    """Context manager that ends the process when `utils.process.beat` is not called often enough.

    A Python thread checks for heartbeats. If a library holds the interpreter's lock, faulthandler's C thread does the
    same after twice the time, with exit code 1. The time restarts for a process that was suspended. A suspension of
    more than twice the time ends it, since faulthandler cannot detect one.

    Args:
        seconds: without a heartbeat after which the process counts as hung; None = never.
        rank: for the message.
    """

    def __init__(self, seconds: float | None, rank: int) -> None:
        self.seconds, self.rank = seconds, rank
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        process.beat("start-up")
        if self.seconds:
            self._arm()
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        if self.seconds:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        # Not sys.stderr, which may have no descriptor.
        faulthandler.dump_traceback_later(2 * self.seconds, exit=True, file=sys.__stderr__)

    def _watch(self) -> None:
        pause, woken = min(self.seconds / 4, 5.0), time.monotonic()
        while not self._end.wait(pause):
            late = time.monotonic() - woken - pause
            self._arm()
            silent, phase = process.last_beat()
            if late > self.seconds / 2:  # the whole process was suspended: scontrol suspend, gang scheduling
                process.beat(phase)
            elif silent > self.seconds:
                self._end_process(phase)
            woken = time.monotonic()

    def _end_process(self, phase: str) -> None:
        head = f"error: node {process.node_name()}, rank {self.rank}: no progress for {self.seconds:g} s in {phase}"
        print(f"{head}; the stacks of its threads follow, then the job ends", file=sys.__stderr__, flush=True)
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        sys.__stderr__.flush()
        time.sleep(min(PRINT_SECONDS, self.seconds))
        os._exit(HANG)
