"""The handlers of SIGUSR1 and SIGTERM: they set a flag and nothing else.

Whatever a signal interrupts (an import, a restore, a validation, a checkpoint being written) goes on as if nothing
had happened; training looks at the flag between two batches. Imports nothing but the standard library, so that the
handlers are there before anything slow begins.
"""

import faulthandler
import signal
import sys
import threading
import time

BORN = time.time()  # of this process, nearly
# How urgent: ranks agree on the highest. USR1 says that the job is to come back, TERM alone does not.
NONE, TERM, USR1 = 0, 1, 2
CODES = {signal.SIGTERM: TERM, signal.SIGUSR1: USR1}
NAMES = {TERM: "SIGTERM", USR1: "SIGUSR1"}
EXITS = {TERM: 128 + signal.SIGTERM, USR1: 128 + signal.SIGUSR1}

_received = NONE


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
    if threading.current_thread() is not threading.main_thread():
        return
    for signum in CODES:
        signal.signal(signum, _note)
    # Stacks on demand: scancel --signal=USR2 JOB.
    faulthandler.register(signal.SIGUSR2, file=sys.__stderr__, all_threads=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CODES)


def received() -> int:
    """NONE, TERM or USR1: the most urgent signal so far."""
    return _received


def _note(signum: int, frame) -> None:
    global _received
    _received = max(_received, CODES[signum])
