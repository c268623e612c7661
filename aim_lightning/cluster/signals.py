"""The handlers of SIGUSR1 and SIGTERM: they set a flag and nothing else.

Whatever a signal interrupts (an import, a restore, a validation, a checkpoint being written) goes on as if nothing
had happened; training looks at the flag between two batches. Imports nothing but the standard library, so that the
handlers are there before anything slow begins.
"""

import contextlib
import faulthandler
import signal
import sys
import threading
import time
from collections.abc import Iterator

BORN = time.time()  # of this process, nearly
# How urgent: ranks agree on the highest. USR1 says that the job is to come back, TERM alone does not.
NONE, TERM, USR1 = 0, 1, 2
CODES = {signal.SIGTERM: TERM, signal.SIGUSR1: USR1}
NAMES = {TERM: "SIGTERM", USR1: "SIGUSR1"}
EXITS = {TERM: 128 + signal.SIGTERM, USR1: 128 + signal.SIGUSR1}

_received = NONE
_installed = False


class Stopped(BaseException):
    """Training ended between two batches because of a signal; no error.

    Args:
        code: TERM or USR1.
        step: optimizer steps done, all of them in a checkpoint.
        saved: whether there is such a checkpoint.
    """

    def __init__(self, code: int, step: int, saved: bool = True) -> None:
        super().__init__(f"stopped by {NAMES[code]} at step {step}")
        self.code, self.step, self.saved = code, step, saved


def install() -> None:
    """Set the handlers, and let through what the job script held back until now. May be called again."""
    global _installed
    if threading.current_thread() is not threading.main_thread():
        return
    for signum in CODES:
        signal.signal(signum, _note)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # what unregister puts back for the moment until register
    _show_stacks()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*CODES, signal.SIGUSR2))
    _installed = True


def keep() -> None:
    """Set the handlers again, if this process has set them; ten microseconds.

    LLVM takes these signals for itself when Triton first compiles a kernel in a process, without Python's knowing: from
    then on SIGUSR1 would do nothing, and SIGTERM, SIGUSR2 and SIGINT would end training on the spot.
    """
    if not _installed or threading.current_thread() is not threading.main_thread():
        return
    for signum in (*CODES, signal.SIGINT):
        handler = signal.getsignal(signum)
        if handler is not None:  # None: not Python's, from before Python began
            signal.signal(signum, handler)
    _show_stacks()


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Keep the signals back from this thread, and from the processes that it starts meanwhile, for good.

    SLURM sends SIGTERM to every process of a job it requeues: to the `scontrol requeue` inside it as well.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, CODES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _show_stacks() -> None:
    """Stacks on demand: scancel --signal=USR2 JOB."""
    faulthandler.unregister(signal.SIGUSR2)  # or register would change nothing
    faulthandler.register(signal.SIGUSR2, file=sys.__stderr__, all_threads=True)


def received() -> int:
    """NONE, TERM or USR1: the most urgent signal so far."""
    return _received


def _note(signum: int, frame) -> None:
    global _received
    _received = max(_received, CODES[signum])
