"""Loader processes outlive the signals that SLURM sends to every process of a job."""

import os
import signal
import threading

SENT = (signal.SIGTERM, signal.SIGUSR1)


def outlive_signals(worker: int = 0) -> None:
    """For `DataLoader(worker_init_fn=…)`: only the parent's SIGTERM ends a worker, not SLURM's.

    Otherwise a warning kills the workers, and the rank fails before it reaches its batch boundary.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SENT)
    threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True, name="signals").start()


def _obey_parent(parent: int) -> None:
    while True:
        info = signal.sigwaitinfo(SENT)
        if info.si_signo == signal.SIGTERM and info.si_pid in (parent, os.getpid()):
            os._exit(0)
