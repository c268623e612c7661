"""A lease with a heartbeat: one training per run directory, one evaluation per set of samples; rank 0 holds it.

The heartbeat is the file's modification time. Setting it needs no space, so a full disk does not end a lease.
"""

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from aim_lightning.utils.errors import TransientError, UserError, disk_mistake
from aim_lightning.utils.files import is_running, make_directory, write_text
from aim_lightning.utils.logging import warn

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


class LeaseState(NamedTuple):
    """Content of a lease file.

    Args:
        holder: host, pid, job and starts; {} for a file that is created but not written yet.
        heartbeat: time of the last heartbeat, seconds since 1970.
    """

    holder: dict
    heartbeat: float

    @property
    def age(self) -> float:
        """Return the seconds since the last heartbeat."""
        return time.time() - self.heartbeat

    def is_dead(self, stale_seconds: float = STALE_SECONDS) -> bool:
        """Return True if the holder's process is gone from this host, or its last heartbeat is too old."""
        process = self.holder.get("pid", 0)
        if self.holder.get("host") == socket.gethostname() and not (process > 0 and is_running(process)):
            return True
        return self.age > stale_seconds


def read_lease(path: Path) -> LeaseState | None:
    """Read a lease file; None where there is no such file."""
    holder = {}
    try:
        with path.open() as file:
            with contextlib.suppress(ValueError, TypeError):  # not written yet, or a foreign file
                holder = dict(json.load(file))
            # fstat after open: NFS revalidates attributes on open, while stat may return a cached time.
            return LeaseState(holder, os.fstat(file.fileno()).st_mtime)
    except FileNotFoundError:
        return None


def is_held(path: Path) -> bool:
    """Return True if a live process holds a lease file."""
    state = read_lease(path)
    return state is not None and not state.is_dead()


def _exit(message: str, code: int) -> None:
    print(f"error: {message}; this process exits without writing anything", file=sys.stderr, flush=True)
    os._exit(code)  # sys.exit would end this thread only


@dataclass
class Lease:
    """Context manager that holds the lease file `path`.

    A lease is free when its heartbeat is older than `stale_seconds`, when its process is gone from this host, or when
    an earlier start of the same SLURM job held it. Of several processes that see it free, one takes it. A SLURM job may
    start seconds after a node died, so it waits for a second heartbeat of a holder on another host before refusing.

    The process exits from a thread, before it can write anything, when another one took the lease (this one was
    suspended), or may soon take it because no heartbeat succeeded for nearly `stale_seconds`.

    Args:
        path: the file, in a directory that all nodes share.
        beat_seconds: seconds between two heartbeats.
        stale_seconds: age of the heartbeat after which the holder counts as dead.
        activity: past participle for messages, such as "trained".

    Raises:
        UserError: another process holds it, or its directory is not writable.
        TransientError: the file cannot be written now.
    """

    path: Path
    beat_seconds: float = BEAT_SECONDS
    stale_seconds: float = STALE_SECONDS
    activity: str = "trained"

    def __post_init__(self) -> None:
        job = os.environ.get("SLURM_JOB_ID")
        starts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        self.owner = {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "starts": starts}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Lease":
        try:
            make_directory(self.path.parent)
            while not self._create(self.path):
                if (dead := self._wait_until_free()) is not None:
                    self._replace(self.path, dead)
                    break
        except OSError as error:
            fault = f"{self.path} cannot be written ({error.strerror or error}); free disk space or fix the disk"
            raise (disk_mistake(error, self.path) or TransientError(fault)) from error
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # a broken disk must not hide how training ended; the lease expires anyway
            state = read_lease(self.path)
            if state and self._is_mine(state.holder):  # another process may have taken it
                self.path.unlink(missing_ok=True)
            # Both fail unless empty: training that failed before any write leaves no directory.
            self.path.parent.rmdir()
            self.path.parent.parent.rmdir()

    def _create(self, path: Path) -> bool:
        """Create the file exclusively and write the owner; False where it exists already."""
        # Until the owner is written the file is empty, which counts as held.
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
        """Return the lease of a dead holder, None where it is gone; refuse while the holder is alive."""
        first = read_lease(self.path)
        while (state := read_lease(self.path)) is not None and not self._is_dead(state):
            holder, beats = state.holder, first is None or state.heartbeat != first.heartbeat
            if not holder or beats or not self.owner["job"] or holder.get("host") == self.owner["host"]:
                self._refuse(state)
            time.sleep(min(self.beat_seconds, 1.0))
        return state

    def _replace(self, path: Path, dead: LeaseState) -> None:
        """Replace a dead lease; of several processes that read the same one, the holder of its claim file does.

        The claim is a lease too: where its process died within these lines, it is replaced in the same way.
        """
        claim = path.with_name(f".{path.name}.{hashlib.sha256(repr(dead).encode()).hexdigest()[:16]}")
        if not self._create(claim):
            other = read_lease(claim)
            if other is None or not self._is_dead(other):
                self._refuse(other)
            self._replace(claim, other)
        try:
            # Read again under the claim: another process was faster, or the holder resumed.
            if (now := read_lease(path)) != dead:
                self._refuse(now)
            write_text(path, self._text())
        finally:
            claim.unlink(missing_ok=True)

    def _is_dead(self, state: LeaseState) -> bool:
        holder = state.holder
        if holder.get("job") and holder["job"] == self.owner["job"] and holder.get("starts", 0) < self.owner["starts"]:
            return True  # SLURM ends a job before it starts it again
        return state.is_dead(self.stale_seconds)

    def _is_mine(self, holder: dict) -> bool:
        return (holder.get("host"), holder.get("pid")) == (self.owner["host"], self.owner["pid"])

    def _refuse(self, state: LeaseState | None) -> None:
        owner = "another process that has just started"
        if state and state.holder:
            owner = f"{_description(state.holder)}, last heartbeat {state.age:.0f} s ago"
        hint = f"or stop it (its lease ends {self.stale_seconds:.0f} s after its last heartbeat)"
        raise UserError(f"{self.path.parent} is being {self.activity} by {owner}; wait for it, {hint}")

    def _text(self) -> str:
        return json.dumps(self.owner, indent=2) + "\n"

    def _beat(self) -> None:
        last, failing = time.monotonic(), False
        while not self._stop.wait(self.beat_seconds):
            try:
                other = self._renew()
            except OSError as error:
                silence, reason = time.monotonic() - last, error.strerror or error
                fault = f"{self.path.parent}: no heartbeat for {silence:.0f} s, {self.path} fails ({reason})"
                if not failing:  # once per outage; it is tried again at every beat
                    warn(f"{fault}; trying again")
                failing = True
                # Abort before other processes count this one as dead.
                if silence >= self.stale_seconds - self.beat_seconds:
                    _exit(f"{fault}; another process may take it now", TransientError.exit_code)
                    break
                continue
            last, failing = time.monotonic(), False
            if other:
                _exit(f"{self.path.parent} has been taken over by {_description(other)}", 2)
                break

    def _renew(self) -> dict | None:
        """Set the modification time; return the holder instead if it is another process."""
        state = read_lease(self.path)
        if state is None:  # removed by hand
            self._create(self.path)
        elif state.holder and not self._is_mine(state.holder):
            return state.holder
        else:
            os.utime(self.path)
        return None


def _description(holder: dict) -> str:
    job = f" (job {holder['job']})" if holder.get("job") else ""
    return f"process {holder.get('pid')} on {holder.get('host')}{job}"
