"""Trainings as forks of this process, which has imported everything: a start takes one second instead of ten."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from helpers import free_port


@dataclass
class Start:
    """A start of a run: one process per rank, all in one process group.

    Args:
        arguments: of `aim-lightning`.
        ranks: number of processes.
        log: file of all output.
        prepare: called with the rank in each process before training.
    """

    arguments: list[str]
    ranks: int
    log: Path
    prepare: Callable[[int], None]
    processes: list[int] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)

    def launch(self) -> "Start":
        port = free_port()
        for rank in range(self.ranks):
            pid = os.fork()
            if pid == 0:
                self._train(rank, port)
            self.processes.append(pid)
            os.setpgid(pid, self.processes[0])
        return self

    def _train(self, rank: int, port: int) -> None:
        code = 99
        try:
            os.setpgid(0, self.processes[0] if self.processes else 0)
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            if self.ranks > 1:
                address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                names = {"WORLD_SIZE": self.ranks, "RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, **address}
                os.environ |= {name: str(value) for name, value in names.items()}
            self.prepare(rank)
            from aim_lightning.cli.main import main

            code = main(self.arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 98
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code or 0)

    def poll(self) -> bool:
        """Collect the exit codes so far; return True once all processes have ended."""
        for rank, pid in enumerate(self.processes):
            if rank not in self.codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == self.ranks

    def wait(self, seconds: float) -> bool:
        """Wait until all processes have ended; return False after so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.poll():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def send(self, number: signal.Signals, ranks: tuple[int, ...]) -> None:
        for rank in ranks:
            if rank not in self.codes:
                os.kill(self.processes[rank], number)

    def kill(self) -> None:
        """End the remaining processes, loader workers included, as a cluster does after one rank has died."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.processes[0], signal.SIGKILL)
        self.wait(30)

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""
