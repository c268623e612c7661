"""The current process: its rank before a process group exists, its heartbeat, signals and threads. Imports no torch."""

import contextlib
import gc
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")

# Set by Lightning for its subprocesses and nodes, and by srun; 0 or absent on rank 0.
RANKS = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
# Set for every process that srun starts; a script that sbatch starts has at most the step's id.
STEP = ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS")
INTERACTIVE = ("bash", "sh", "zsh", "interactive")  # job names of `srun --pty bash`: a shell, not ranks
JOB_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

READING = "reading data"
_last_beat, _phase = time.monotonic(), "start-up"


def is_rank_zero() -> bool:
    """Return True on rank 0 and in a single process."""
    if os.environ.get("RANK"):  # torchrun takes precedence: its nodes need not be in srun's order
        return int(os.environ["RANK"]) == 0
    return all(int(os.environ.get(name) or 0) == 0 for name in RANKS)


def rank() -> int:
    """Return the global rank according to the environment."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or 0)


def node_name() -> str:
    """Return this machine's name in SLURM, or its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


@dataclass(frozen=True)
class ProcessRank:
    """Global rank, number of ranks, and rank on the node."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def launched_rank() -> ProcessRank | None:
    """Return the rank that torchrun or srun assigned; None without a launcher.

    sbatch is no launcher: its script is one process, whatever SLURM_NTASKS is. Nor is a shell that srun started.
    """
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif in_step(os.environ):
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return None
    rank, world, local_rank = (int(os.environ.get(name) or 0) for name in names)
    return ProcessRank(rank, world or 1, local_rank)


def in_step(env: Mapping[str, str]) -> bool:
    """Return True if srun started this process as one of its ranks."""
    return all(name in env for name in STEP) and env.get("SLURM_JOB_NAME") not in INTERACTIVE


def beat(phase: str) -> None:
    """Record a sign of life for the watchdog of `cluster`.

    Args:
        phase: what the process does next, for the watchdog's report.
    """
    global _last_beat, _phase
    _last_beat, _phase = time.monotonic(), phase


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Mark a read of training data: it may block forever, and a signal may abort it (see `cluster.signals`)."""
    beat(READING)
    try:
        yield
    finally:
        beat("what follows reading")


def last_beat() -> tuple[float, str]:
    """Return the seconds since the last call of `beat`, and its phase."""
    return time.monotonic() - _last_beat, _phase


def choose_wait_policy() -> None:
    """Let OpenMP's waiting threads sleep if the machine is busy at the start; call it before torch is imported.

    Threads that wait in a loop take the processors from other processes: next to other jobs a training ran 5 to 9
    times slower. On an idle machine sleeping was 17 % slower with 2 cores and 29 % slower with 8, so that OpenMP's
    default stays there. OMP_WAIT_POLICY takes precedence.
    """
    if "OMP_WAIT_POLICY" not in os.environ and _busy_processors() + _own_threads() > (os.cpu_count() or 1):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def _busy_processors() -> int:
    """Return the number of threads of other processes that run now; 0 where the system does not report it."""
    counts = []
    for _ in range(5):  # the load average would still count a training that has just ended
        try:
            with open("/proc/loadavg", encoding="ascii") as file:  # noqa: PTH123
                counts.append(int(file.read().split()[3].partition("/")[0]) - 1)
        except (OSError, ValueError, IndexError):
            return 0
        time.sleep(0.002)
    return sorted(counts)[2]


def _own_threads() -> int:
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        return int(threads)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def outlive_signals(worker: int = 0) -> None:
    """Keep a loader process alive at SLURM's signals and Ctrl-C; only the parent's SIGTERM ends it.

    For `DataLoader(worker_init_fn=…)`. SLURM signals every process of a job: without this its warning would kill the
    workers, and the rank would fail before it reaches its batch boundary.
    """
    # A terminal sends Ctrl-C to the workers too; the parent decides when they end.
    signal.pthread_sigmask(signal.SIG_BLOCK, (*JOB_SIGNALS, signal.SIGINT))
    threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True, name="signals").start()


def _obey_parent(parent: int) -> None:
    while True:
        info = signal.sigwaitinfo(JOB_SIGNALS)
        if info.si_signo == signal.SIGTERM and info.si_pid in (parent, os.getpid()):
            os._exit(0)


def in_background(work: Callable[[], Result]) -> "Future[Result]":
    """Start `work` in a daemon thread; `.result()` waits for it and raises its error.

    An executor's threads would keep the process alive at exit.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="background").start()
    return future


def prefetch(items: Iterator[Result], depth: int) -> Iterator[Result]:
    """Yield the same items in order while a thread fetches up to `depth` of them ahead; its errors are raised here."""
    end = object()
    pool = ThreadPoolExecutor(1)  # one thread, since a generator cannot run in two
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Pause garbage collection, for imports: their objects stay, and scanning them took a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
