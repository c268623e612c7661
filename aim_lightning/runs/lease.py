"""One training a run directory: a lease with a heartbeat, taken by global rank zero."""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_json

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


class Lease:
    """Context manager: holds `path` while inside.

    A lease is free when its heartbeat is older than `stale_seconds`, when its process is gone from this host, or when
    it belongs to an earlier start of this very SLURM job. Of several that find it free one gets it.

    Args:
        path: the file, in a folder that all nodes share.
        beat_seconds: between two signs of life.
        stale_seconds: without one before the holder counts as dead.
        patient: look whether the holder on another host still beats, instead of refusing at once. Default: in SLURM
            jobs, which may start seconds after a node has died.
        on_lost: called from a thread when another process has taken the lease (this one had been asleep); by default
            the process ends at once, before it can write anything.

    Raises:
        UserError: somebody else holds it.
    """

    def __init__(
        self,
        path: Path,
        beat_seconds: float = BEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        patient: bool | None = None,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self.path, self.beat_seconds, self.stale_seconds = path, beat_seconds, stale_seconds
        job = os.environ.get("SLURM_JOB_ID")
        starts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        self.owner = {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "starts": starts}
        self.patient = job is not None if patient is None else patient
        self.on_lost = on_lost or _end_at_once
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Lease":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._create():
            self._wait_until_free()
            self._take_over()
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        if self._is_mine(self._holder()):  # nobody took it over meanwhile
            self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()  # a training that failed before it wrote anything leaves no folder

    def _create(self) -> bool:
        """Whether there was none."""
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True

    def _wait_until_free(self) -> None:
        """Return when the holder is dead; refuse when it is not."""
        first = self._holder()
        while (holder := self._holder()) and not self._is_dead(holder):
            beats = holder.get("heartbeat") != first.get("heartbeat")
            if beats or not self.patient or holder.get("host") == self.owner["host"]:
                self._refuse(holder)
            time.sleep(min(self.beat_seconds, 1.0))
        if not holder and self._age(holder) <= self.stale_seconds:
            self._refuse(holder)

    def _is_dead(self, holder: dict) -> bool:
        if holder.get("job") and holder["job"] == self.owner["job"] and holder.get("starts", 0) < self.owner["starts"]:
            return True  # SLURM ends a job before it starts it again
        same_host = holder.get("host") == self.owner["host"]
        return self._age(holder) > self.stale_seconds or (same_host and not _alive(holder.get("pid", 0)))

    def _age(self, holder: dict) -> float:
        try:
            return time.time() - holder.get("heartbeat", self.path.stat().st_mtime)
        except FileNotFoundError:
            return self.stale_seconds + 1

    def _take_over(self) -> None:
        """Move the dead lease away, which one process alone can do, and make a new one."""
        aside = self.path.with_name(f".{self.path.name}.{self.owner['host']}.{self.owner['pid']}")
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(aside)
            taken = json.loads(aside.read_text() or "{}")
            if taken and not self._is_dead(taken):  # somebody was faster: give it back
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink()
        if not self._create():
            self._refuse(self._holder())

    def _is_mine(self, holder: dict) -> bool:
        return (holder.get("host"), holder.get("pid")) == (self.owner["host"], self.owner["pid"])

    def _refuse(self, holder: dict) -> None:
        age = self._age(holder)
        who = f"process {holder.get('pid')} on {holder.get('host')}"
        who += f" (job {holder['job']})" if holder.get("job") else ""
        raise UserError(
            f"{self.path.parent} is being trained by {who}, last sign {age:.0f} s ago; wait for it, "
            f"or stop it (its lease ends {self.stale_seconds:.0f} s after its last sign)"
        )

    def _holder(self) -> dict:
        try:
            return json.loads(self.path.read_text())
        except (ValueError, OSError):
            return {}  # just created by another process: its time stamp decides

    def _write(self) -> None:
        write_json(self.path, {**self.owner, "heartbeat": time.time()})

    def _beat(self) -> None:
        while not self._stop.wait(self.beat_seconds):
            holder = self._holder()
            if holder and not self._is_mine(holder):
                self.on_lost(f"{self.path.parent} has been taken over by process {holder['pid']} on {holder['host']}")
                return
            self._write()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0


def _end_at_once(message: str) -> None:
    print(f"error: {message}; this process ends without writing anything", file=sys.stderr, flush=True)
    os._exit(2)
