"""TensorBoard's event file, written so that a full disk neither ends training nor loses parts of the curves."""

import os
import socket
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.writer import FileWriter

from aim_lightning.utils.logging import warn_once

MOST_WAITING = 64 << 20  # bytes of events kept in memory while the disk is full
VERSION = "brain.Event:2"
_numbers = count()


class EventFile:
    """Replacement of tensorboard's EventFileWriter, whose thread ends at the first failed write.

    Events stay in memory until they are flushed. After a failed flush the file is cut back to whole records, and the
    events are written again by a later flush. Beyond 64 MiB further events are lost, with a warning.

    Args:
        directory: created by the first flush, like the file.
        flush_seconds: longest time in seconds between two flushes, if nothing else flushes.
        suffix: of the file's name.
    """

    def __init__(self, directory: str | Path, flush_seconds: float = 120.0, suffix: str = "") -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self.path, self.flush_seconds = Path(directory) / (name + suffix), flush_seconds
        self.waiting, self.flushed_at = bytearray(), time.monotonic()
        self.add_event(Event(wall_time=time.time(), file_version=VERSION))

    def get_logdir(self) -> str:
        """Return the directory of the file, for tensorboard's FileWriter."""
        return str(self.path.parent)

    def add_event(self, event: Event) -> None:
        """Append an event in memory, and flush after `flush_seconds`."""
        if len(self.waiting) > MOST_WAITING:
            warn_once(f"{self.path} cannot be written and 64 MiB wait for it; curves and images get a hole")
        else:
            # A RecordWriter calls only `write` of its file.
            RecordWriter(SimpleNamespace(write=self.waiting.extend)).write(event.SerializeToString())
        if time.monotonic() - self.flushed_at >= self.flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Write waiting events to the file; a disk error is reported once."""
        self.flushed_at = time.monotonic()
        if not self.waiting:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _append(self.path, self.waiting)
        except OSError as error:
            warn_once(f"{self.path} cannot be written ({error.strerror or error}); its events wait for room")
        else:
            self.waiting.clear()

    def close(self) -> None:
        """Write waiting events to the file."""
        self.flush()


def _append(path: Path, data: bytes | bytearray) -> None:
    """Append all bytes or none: TensorBoard reads nothing after half a record."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            with memoryview(data) as view:
                done = 0
                while done < len(view):
                    done += file.write(view[done:])
        except OSError:
            file.truncate(size)
            raise


class RunWriter(SummaryWriter):
    """SummaryWriter on an `EventFile`; the arguments are those of SummaryWriter."""

    def __init__(self, log_dir: str, purge_step: int | None = None, flush_secs: float = 120, filename_suffix: str = ""):
        self._events = EventFile(log_dir, flush_secs, filename_suffix)
        super().__init__(log_dir, purge_step=purge_step)

    def _get_file_writer(self) -> FileWriter:  # private: the only place where SummaryWriter creates its file
        if self.file_writer is None:
            self.file_writer = FileWriter.__new__(FileWriter)  # its constructor would create tensorboard's own file
            self.file_writer.event_writer = self._events
            self.all_writers = {self._events.get_logdir(): self.file_writer}
            if self.purge_step is not None:
                # A session start at this step makes TensorBoard drop later steps of earlier files.
                for content in ({"file_version": VERSION}, {"session_log": SessionLog(status=SessionLog.START)}):
                    self.file_writer.add_event(Event(step=self.purge_step, **content))
                self.purge_step = None
        return self.file_writer
