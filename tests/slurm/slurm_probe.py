"""A callback for tests on SLURM: records the phase of training, prolongs phases, and breaks on demand."""

import ctypes
import os
import signal
import time
from pathlib import Path

from lightning.pytorch import Callback

from aim_lightning.cluster.signals import received
from aim_lightning.utils.process import beat


class Probe(Callback):
    """Write one line per phase into `trace-RANK` of the run directory; wait while it contains a file `hold`.

    Args:
        pause: seconds before each batch, in the first start of a job.
        pause_of_rank: further seconds by rank: ranks out of step.
        long: phase (validation, sampling, checkpoint, restore) -> seconds that it waits for a signal, at most.
        break_at: step at which `how` happens.
        how: `hang` (a sleep), `stuck` (inside C with the interpreter's lock held), `raise`, `kill` (SIGKILL).
        break_rank: rank on which it happens.
        break_starts: only in starts of the job below this number.
    """

    needs = ("run_dir",)

    def __init__(
        self,
        pause: float = 0.0,
        pause_of_rank: dict[str, float] | None = None,
        long: dict[str, float] | None = None,
        break_at: int = -1,
        how: str = "hang",
        break_rank: int = 0,
        break_starts: int = 1,
    ) -> None:
        self.pause, self.pause_of_rank, self.long = pause, pause_of_rank or {}, long or {}
        self.break_at, self.how, self.break_rank, self.break_starts = break_at, how, break_rank, break_starts
        self.starts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)

    def trace(self, trainer, phase: str) -> None:
        line = f"{self.starts} {phase} {trainer.global_step} {os.getpid()} {time.time():.3f}\n"
        with Path(f"{self.run_dir}/trace-{trainer.global_rank}").open("a") as file:
            file.write(line)

    def phase(self, trainer, name: str) -> None:
        self.trace(trainer, name)
        start = 1 if name == "restore" else 0  # of the job, the first that has this phase
        end = time.monotonic() + (self.long.get(name, 0) if self.starts == start else 0)
        while time.monotonic() < end and not received():
            time.sleep(0.1)

    def on_load_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        self.phase(trainer, "restore")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.trace(trainer, "batch")
        while Path(f"{self.run_dir}/hold").exists():
            beat("waiting for the test")
            time.sleep(0.1)
        late = self.pause_of_rank.get(str(trainer.global_rank), 0)
        time.sleep(self.pause + late if self.starts == 0 else 0)
        here = trainer.global_step == self.break_at and trainer.global_rank == self.break_rank
        if here and self.starts < self.break_starts:
            self._break()

    def _break(self) -> None:
        if self.how == "hang":
            time.sleep(10_000)
        if self.how == "stuck":
            ctypes.PyDLL(None).sleep(10_000)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("broken on purpose")

    def on_validation_start(self, trainer, pl_module) -> None:
        self.phase(trainer, "validation")

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        self.phase(trainer, "sampling")

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        self.phase(trainer, "checkpoint")
