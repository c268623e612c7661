"""One training a run directory: a lease with a heartbeat, taken by global rank zero."""

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_json

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


class Lease:
    """Context manager: holds `path` while inside.

    A lease is free when its heartbeat is older than `stale_seconds`, or when its process is gone from this host.

    Raises:
        UserError: somebody else holds it.
    """

    def __init__(self, path: Path, beat_seconds: float = BEAT_SECONDS, stale_seconds: float = STALE_SECONDS) -> None:
        self.path, self.beat_seconds, self.stale_seconds = path, beat_seconds, stale_seconds
        self.owner = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Lease":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            self._refuse_if_held()
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        if self._holder().get("pid") == self.owner["pid"]:  # nobody took it over meanwhile
            self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()  # a training that failed before it wrote anything leaves no folder

    def _refuse_if_held(self) -> None:
        holder = self._holder()
        age = time.time() - holder.get("heartbeat", self.path.stat().st_mtime)
        same_host = holder.get("host") == self.owner["host"]
        gone = same_host and not _alive(holder.get("pid", 0))
        if age > self.stale_seconds or gone:
            return
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
            self._write()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
