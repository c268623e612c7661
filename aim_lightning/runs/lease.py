"""One training a run directory: a lease with a heartbeat, taken by global rank zero."""

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_text

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
        while not self._create(self.path):
            if (dead := self._wait_until_free()) is not None:
                self._replace(self.path, dead)
                break
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        if self._is_mine(_parse(_read(self.path))):  # nobody took it over meanwhile
            self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()  # a training that failed before it wrote anything leaves no folder

    def _create(self, path: Path) -> bool:
        """Whether there was none. Between making it and filling it, it is empty, which counts as held."""
        try:
            with path.open("x") as file:
                file.write(self._text())
        except FileExistsError:
            return False
        return True

    def _wait_until_free(self) -> str | None:
        """The lease of a dead holder, None when it is gone; refuses when its holder is alive."""
        first = _parse(_read(self.path))
        while (text := _read(self.path)) is not None and not self._is_dead(holder := _parse(text)):
            beats = holder.get("heartbeat") != first.get("heartbeat")
            if not holder or beats or not self.patient or holder.get("host") == self.owner["host"]:
                self._refuse(holder)
            time.sleep(min(self.beat_seconds, 1.0))
        return text

    def _replace(self, path: Path, dead: str) -> None:
        """Put this lease in place of a dead one. Of several that saw the same text, the one with the claim to it does.

        The claim is a lease too: one whose process died within these few lines is replaced in the same way.
        """
        claim = path.with_name(f".{path.name}.{hashlib.sha256(dead.encode()).hexdigest()[:16]}")
        if not self._create(claim):
            other = _read(claim)
            if other is None or not self._is_dead(_parse(other), claim):
                self._refuse(_parse(other))
            self._replace(claim, other)
        try:
            if (now := _read(path)) != dead:  # somebody was faster, or the holder has woken up
                self._refuse(_parse(now))
            write_text(path, self._text())
        finally:
            claim.unlink(missing_ok=True)

    def _is_dead(self, holder: dict, path: Path | None = None) -> bool:
        if holder.get("job") and holder["job"] == self.owner["job"] and holder.get("starts", 0) < self.owner["starts"]:
            return True  # SLURM ends a job before it starts it again
        gone = holder.get("host") == self.owner["host"] and not _alive(holder.get("pid", 0))
        return gone or self._age(holder, path) > self.stale_seconds

    def _age(self, holder: dict, path: Path | None = None) -> float:
        """Seconds since the last sign of life; that of a file without content is its time stamp."""
        try:
            return time.time() - holder.get("heartbeat", (path or self.path).stat().st_mtime)
        except FileNotFoundError:
            return self.stale_seconds + 1

    def _is_mine(self, holder: dict) -> bool:
        return (holder.get("host"), holder.get("pid")) == (self.owner["host"], self.owner["pid"])

    def _refuse(self, holder: dict) -> None:
        who, sign = "another process that has just started", ""
        if holder:
            who = f"process {holder.get('pid')} on {holder.get('host')}"
            who += f" (job {holder['job']})" if holder.get("job") else ""
            sign = f", last sign {self._age(holder):.0f} s ago"
        raise UserError(
            f"{self.path.parent} is being trained by {who}{sign}; wait for it, "
            f"or stop it (its lease ends {self.stale_seconds:.0f} s after its last sign)"
        )

    def _text(self) -> str:
        return json.dumps({**self.owner, "heartbeat": time.time()}, indent=2) + "\n"

    def _beat(self) -> None:
        while not self._stop.wait(self.beat_seconds):
            holder = _parse(_read(self.path))
            if holder and not self._is_mine(holder):
                self.on_lost(f"{self.path.parent} has been taken over by process {holder['pid']} on {holder['host']}")
                return
            write_text(self.path, self._text())


def _read(path: Path) -> str | None:
    """None when there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _parse(text: str | None) -> dict:
    """{} for a file that is gone, or that another process has made and not filled yet."""
    try:
        holder = json.loads(text or "")
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


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
