"""One training a run directory, one evaluation a set of samples: a lease with a heartbeat, taken by global rank zero.

The sign of life is the file's time stamp: setting it needs no space, so that a full disk ends no lease.
"""

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aim_lightning.runs.lease_file import LeaseState, read_lease
from aim_lightning.utils.errors import TransientError, UserError, disk_mistake
from aim_lightning.utils.files import write_text

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


class Lease:
    """Context manager: holds `path` while inside.

    A lease is free when its heartbeat is older than `stale_seconds`, when its process is gone from this host, or when
    it belongs to an earlier start of this very SLURM job. Of several that find it free one gets it.

    Args:
        path: the file, in a directory that all nodes share.
        beat_seconds: between two signs of life.
        stale_seconds: without one before the holder counts as dead.
        patient: look whether the holder on another host still beats, instead of refusing at once. Default: in SLURM
            jobs, which may start seconds after a node has died.
        doing: what is done under it, for messages.
        on_lost: called from a thread when another process has taken the lease (this one had been asleep), or may do so
            soon because no sign of life could be given for nearly `stale_seconds`; by default the process ends at
            once, before it can write anything.

    Raises:
        UserError: somebody else holds it, or it lies where nothing can be written.
        TransientError: the file cannot be written now.
    """

    def __init__(
        self,
        path: Path,
        beat_seconds: float = BEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        patient: bool | None = None,
        doing: str = "trained",
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self.path, self.beat_seconds, self.stale_seconds, self.doing = path, beat_seconds, stale_seconds, doing
        job = os.environ.get("SLURM_JOB_ID")
        starts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        self.owner = {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "starts": starts}
        self.patient = job is not None if patient is None else patient
        self.on_lost = on_lost or partial(_end_at_once, code=2)
        self.on_silence = on_lost or partial(_end_at_once, code=TransientError.exit_code)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Lease":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not self._create(self.path):
                if (dead := self._wait_until_free()) is not None:
                    self._replace(self.path, dead)
                    break
        except OSError as error:
            fault = TransientError(f"{self.path} cannot be written ({_reason(error)}); make room or mend the disk")
            raise (disk_mistake(error, self.path) or fault) from error
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # a broken disk must not hide how training ended; the lease ends by itself
            found = read_lease(self.path)
            if found and self._is_mine(found.holder):  # nobody took it over meanwhile
                self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()  # a training that failed before it wrote anything leaves no directory

    def _create(self, path: Path) -> bool:
        """Whether there was none. Between making it and filling it, it is empty, which counts as held."""
        try:
            file = path.open("x")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(self._text())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return True

    def _wait_until_free(self) -> LeaseState | None:
        """The lease of a dead holder, None when it is gone; refuses when its holder is alive."""
        first = read_lease(self.path)
        while (found := read_lease(self.path)) is not None and not self._is_dead(found):
            holder, beats = found.holder, first is None or found.sign != first.sign
            if not holder or beats or not self.patient or holder.get("host") == self.owner["host"]:
                self._refuse(found)
            time.sleep(min(self.beat_seconds, 1.0))
        return found

    def _replace(self, path: Path, dead: LeaseState) -> None:
        """Put this lease in place of a dead one. Of several that saw the same one, the one with the claim to it does.

        The claim is a lease too: one whose process died within these few lines is replaced in the same way.
        """
        claim = path.with_name(f".{path.name}.{hashlib.sha256(repr(dead).encode()).hexdigest()[:16]}")
        if not self._create(claim):
            other = read_lease(claim)
            if other is None or not self._is_dead(other):
                self._refuse(other)
            self._replace(claim, other)
        try:
            if (now := read_lease(path)) != dead:  # somebody was faster, or the holder has woken up
                self._refuse(now)
            write_text(path, self._text())
        finally:
            claim.unlink(missing_ok=True)

    def _is_dead(self, found: LeaseState) -> bool:
        holder = found.holder
        if holder.get("job") and holder["job"] == self.owner["job"] and holder.get("starts", 0) < self.owner["starts"]:
            return True  # SLURM ends a job before it starts it again
        gone = holder.get("host") == self.owner["host"] and not _alive(holder.get("pid", 0))
        return gone or found.age > self.stale_seconds

    def _is_mine(self, holder: dict) -> bool:
        return (holder.get("host"), holder.get("pid")) == (self.owner["host"], self.owner["pid"])

    def _refuse(self, found: LeaseState | None) -> None:
        who, sign = "another process that has just started", ""
        if found and (holder := found.holder):
            who = f"process {holder.get('pid')} on {holder.get('host')}"
            who += f" (job {holder['job']})" if holder.get("job") else ""
            sign = f", last sign {found.age:.0f} s ago"
        raise UserError(
            f"{self.path.parent} is being {self.doing} by {who}{sign}; wait for it, "
            f"or stop it (its lease ends {self.stale_seconds:.0f} s after its last sign)"
        )

    def _text(self) -> str:
        return json.dumps(self.owner, indent=2) + "\n"

    def _beat(self) -> None:
        last, told = time.monotonic(), False
        while not self._stop.wait(self.beat_seconds):
            try:
                thief = self._sign_of_life()
            except OSError as error:  # told once, tried again at every beat
                told = self._bear(error, time.monotonic() - last, told)
                continue
            last, told = time.monotonic(), False
            if thief:
                who = f"process {thief['pid']} on {thief['host']}"
                self.on_lost(f"{self.path.parent} has been taken over by {who}")
                break

    def _bear(self, error: OSError, silent: float, told: bool) -> bool:
        """A disk that fails for a moment is told; one that fails until others count this process as dead ends it."""
        fault = f"{self.path.parent}: no sign of life for {silent:.0f} s, {self.path} fails ({_reason(error)})"
        if not told:
            print(f"warning: {fault}; trying again", file=sys.stderr, flush=True)
        if silent >= self.stale_seconds - self.beat_seconds:
            self.on_silence(f"{fault}; another process may take it now")
            self._stop.set()
        return True

    def _sign_of_life(self) -> dict | None:
        """Set the time stamp; who holds the lease instead, if it is not this process any more."""
        found = read_lease(self.path)
        if found is None:  # removed by hand
            self._create(self.path)
        elif found.holder and not self._is_mine(found.holder):
            return found.holder
        else:
            os.utime(self.path)
        return None


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0


def _end_at_once(message: str, code: int) -> None:
    print(f"error: {message}; this process ends without writing anything", file=sys.stderr, flush=True)
    os._exit(code)
