"""Handle SIGUSR1 and SIGTERM by setting a flag only.

An import, a restore, a validation or a checkpoint being written continues as if no signal had come. Training reads the
flag between two steps: see `callbacks.training.stop_request`. Only a read of data that blocks is aborted. Nothing slow
is imported, so that the handlers are installed at once.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from aim_lightning.utils import process

BORN = time.time()  # approximate start of this process
# By urgency: ranks agree on the maximum. USR1 means that the job is to be requeued, TERM alone does not. After INT, the
# user's Ctrl-C, the job must not be requeued at all.
NONE, TERM, USR1, INT = 0, 1, 2, 3
CODES = {signal.SIGTERM: TERM, signal.SIGUSR1: USR1}
NAMES = {TERM: "SIGTERM", USR1: "SIGUSR1", INT: "Ctrl-C"}
EXITS = {TERM: 128 + signal.SIGTERM, USR1: 128 + signal.SIGUSR1, INT: 128 + signal.SIGINT}

READ_SECONDS = 20.0  # within the 30 seconds after which SLURM kills a job
_received = NONE
_installed = False
on_abort: Callable[[int], None] | None = None  # records the exit code, so that job.sbatch does not see a crash
_stops: SimpleQueue[int] = SimpleQueue()  # its `put` is reentrant, as a signal handler requires


class Stopped(BaseException):
    """Exception that ends a training between two steps after a signal.

    Args:
        code: TERM, USR1 or INT.
        step: optimizer steps done.
        saved: True if a checkpoint contains all of them.
    """

    def __init__(self, code: int, step: int, saved: bool = True) -> None:
        super().__init__(f"stopped by {NAMES[code]} at step {step}")
        self.code, self.step, self.saved = code, step, saved


def install() -> None:
    """Install the handlers, and unblock the signals that the job script blocked; may be called again."""
    global _installed
    if threading.current_thread() is not threading.main_thread():
        return
    if not _installed:
        threading.Thread(target=_abort_blocked_read, daemon=True, name="blocked read").start()
    for signum in CODES:
        signal.signal(signum, _record)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # faulthandler restores it between unregister and register
    _show_stacks()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*CODES, signal.SIGUSR2))
    _installed = True


def keep() -> None:
    """Install the handlers again if this process has installed them.

    LLVM replaces them when Triton compiles its first kernel. Python does not notice. SIGUSR1 would then
    do nothing, and SIGTERM, SIGUSR2 and SIGINT would end training immediately. The call takes ten microseconds.
    """
    if not _installed or threading.current_thread() is not threading.main_thread():
        return
    for signum in (*CODES, signal.SIGINT):
        handler = signal.getsignal(signum)
        if handler is not None:  # None: installed outside Python before it started
            signal.signal(signum, handler)
    _show_stacks()


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Block the signals in this thread; processes started inside keep them blocked.

    SLURM sends SIGTERM to every process of a job that it requeues, and so to the `scontrol requeue` inside it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, CODES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _show_stacks() -> None:
    """Print all stacks at `scancel --signal=USR2 JOB`."""
    faulthandler.unregister(signal.SIGUSR2)  # register alone would keep a handler that LLVM replaced
    faulthandler.register(signal.SIGUSR2, file=sys.__stderr__, all_threads=True)


def received() -> int:
    """Return the most urgent signal so far: NONE, TERM, USR1 or INT."""
    return _received


def _record(signum: int, frame) -> None:
    global _received
    _received = max(_received, CODES[signum])
    if signum == signal.SIGTERM:
        _stops.put(TERM)


def _abort_blocked_read() -> None:
    """Exit after SIGTERM or Ctrl-C if a read of data does not end: no step, and so no checkpoint, can follow it."""
    code = _stops.get()
    time.sleep(READ_SECONDS)  # for a read that is slow only
    while (beat := process.last_beat()) and (beat[1] != process.READING or beat[0] < READ_SECONDS):
        time.sleep(1)
    fact = f"{NAMES[code]}: a read of data has not ended for {beat[0]:.0f} s"
    # Not print: the main thread may hold the lock of the stream.
    os.write(2, f"error: {fact}; aborted without a checkpoint, check the disk or data.path\n".encode())
    if on_abort is not None:
        with contextlib.suppress(Exception):  # the disk of the run may block too
            process.in_background(lambda: on_abort(EXITS[code])).result(2)
    for worker in multiprocessing.active_children():  # a loader process in the same read would outlive this one
        worker.kill()
    os._exit(EXITS[code])


@contextlib.contextmanager
def graceful_interrupt() -> Iterator[None]:
    """Handle the first Ctrl-C inside like SIGTERM; a second one raises KeyboardInterrupt, as outside.

    Outside, such as during imports, there is nothing to save.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    # A process that a shell starts in the background ignores SIGINT; it stays so.
    if not main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(signum: int, frame) -> None:
    global _received
    _received = max(_received, INT)
    _stops.put(INT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Not print: the signal may have interrupted one, whose stream is locked then.
    os.write(2, b"\nCtrl-C: saving a checkpoint after this step; press it again to abort without\n")
