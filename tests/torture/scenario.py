"""A run with faults, compared with one without."""

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from integration.tiny import scalars, write_config

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.runs.directory import list_checkpoints, newest_checkpoint, step_of
from torture.faults import PHASES, SIGNALS, STEP_PHASES, Fault, arm
from torture.processes import Start
from torture.rows import Seen, compare, record_steps

SHARDS = [90, 70, 53]
STEPS_A_FAULT = 5  # what a run may gain on average between two faults
GRACE = 10.0  # seconds for the other ranks after one has ended, and for a stop at a batch boundary
HANG = 15  # seconds after which a training is to notice a hang itself
STALL = 45.0  # seconds without a sign after which everything is killed: nothing has noticed
KINDS = ("SIGKILL", "SIGKILL", "SIGTERM", "SIGUSR1", "SIGUSR1", "full disk", "flip", "truncate")
HANGS = 12  # one of this many faults is a hang, which takes seconds to be noticed


@dataclass
class Scenario:
    """A tiny AiM, accumulation of 2, checkpoints every 4 steps, validation every 6.

    Args:
        root: directory for everything.
        ranks: processes.
        faults: how many.
        seed: of the faults.
        report: called with a line about each.
    """

    root: Path
    ranks: int
    faults: int
    seed: int
    report: Callable[[str], None]
    delivered: Counter = field(default_factory=Counter)
    phases: Counter = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    starts: int = 0
    hurt: int = 0  # checkpoints that were damaged
    named: int = 0  # of those, how many the next start that came so far has named
    pending: bool = False  # a damaged one that no start has come to yet

    @property
    def max_steps(self) -> int:
        return STEPS_A_FAULT * self.faults + 30

    def run(self) -> dict:
        """The report."""
        self._write()
        begun = time.monotonic()
        self._start("whole", None)
        alone = time.monotonic() - begun
        if self._last.codes != dict.fromkeys(range(self.ranks), 0):
            raise RuntimeError(f"the run without faults failed:\n{self._last.text()}")
        for number in range(self.faults):
            self._strike(number)
        self._start("tortured", None)
        if any(self._last.codes.values()):
            self.surprises.append(f"the last start failed: {self._last.text()[-2000:]}")
        return {
            "ranks": self.ranks,
            "faults": sum(self.delivered.values()),
            "by kind": dict(self.delivered),
            "by phase": dict(self.phases),
            "damaged checkpoints": self.hurt,
            "of them named": self.named,
            "starts": self.starts - 1,
            "steps": self.max_steps,
            "seconds without faults": round(alone, 1),
            "seconds": round(time.monotonic() - begun - alone, 1),
            **self._differences(),
            "surprises": self.surprises,
        }

    def _write(self) -> None:
        from helpers import TINY, write_tokens

        write_tokens(self.root / "tokens" / "train", SHARDS, views=2, config=TINY)
        write_tokens(self.root / "tokens" / "val", [19], views=2, config=TINY, seed=1)
        write_config(self.root)

    def _arguments(self, run: str, fault: Fault | None) -> list[str]:
        options = {
            "config": self.root / "tiny.yaml",
            "run": run,
            "trainer.max_steps": self.max_steps,
            "trainer.devices": self.ranks,
            "data.max_device_batch_size": 4 // self.ranks,
            "callbacks.checkpoints.keep_best": 1,
            "callbacks.checkpoints.every_n_minutes": 0.02,
        }
        options |= {"trainer.strategy": "ddp"} if self.ranks > 1 else {"trainer.precision": "bf16-mixed"}
        options |= {} if self.ranks > 1 else {"data.num_workers": 1}
        options |= {"cluster.hang_seconds": HANG} if fault and fault.kind == "hang" else {}
        return ["fit", *(text for name, value in options.items() for text in (f"--{name}", str(value)))]

    def _start(self, run: str, fault: Fault | None, marks: Path | None = None) -> None:
        """Launch and watch until everything has ended."""
        self.starts += 1
        directory = self.root / run
        directory.mkdir(exist_ok=True)

        def prepare(rank: int) -> None:
            if fault:
                arm(fault, rank, marks)
            record_steps(directory, rank)

        log = directory / f"start-{self.starts:04d}.log"
        self._last = Start(self._arguments(run, fault), self.ranks, log, prepare).launch()
        if fault and fault.phase == "clock" and not self._last.wait(fault.seconds):
            self._last.send(SIGNALS[fault.kind], fault.ranks)
            (marks / "struck-clock").touch()
        self._watch(directory)
        self._look_for_the_damaged(self._last.text())

    def _look_for_the_damaged(self, text: str) -> None:
        """A start that got as far as its decision must have named the checkpoint that was damaged before it."""
        if not self.pending or "training from" not in text:
            return
        self.pending = False
        if "ignoring damaged checkpoint" in text:
            self.named += 1
        else:
            self.surprises.append(f"a damaged checkpoint was not named: {text[-1500:]}")

    def _watch(self, directory: Path) -> None:
        """Until all ranks have ended: the rest is killed when one is gone for long, or when nothing moves."""
        start, size, moved, gone = self._last, -1, time.monotonic(), None
        while not start.poll():
            time.sleep(0.01)
            now = time.monotonic()
            total = sum(path.stat().st_size for path in directory.glob("*.log"))
            size, moved = (total, now) if total != size else (size, moved)
            gone = gone or (now if start.codes else None)
            waited = now - moved > (STALL if total > 0 and "training from" in start.text() else 60)
            if waited or (gone and now - gone > GRACE):
                break
        start.kill()

    def _strike(self, number: int) -> None:
        run_dir = self.root / "runs" / "tiny" / "tortured"
        fault = self._choose(number, list_checkpoints(run_dir))
        marks = self.root / f"marks-{number:04d}"
        marks.mkdir()
        begun = time.monotonic()
        self._start("tortured", fault, marks)
        text = self._last.text()
        struck = any(marks.glob("struck-*"))
        if not struck:
            self.surprises.append(f"fault {number} ({fault}) did not strike: {self._last.codes} {text[-1500:]}")
        if fault.kind == "full disk" and "could not be written" not in text:
            self.surprises.append(f"fault {number}: a full disk was not named: {text[-1500:]}")
        if fault.kind == "hang" and struck and "no progress for" not in text:
            self.surprises.append(f"fault {number} ({fault}): the hang was not noticed: {text[-1500:]}")
        if 98 in self._last.codes.values() and self.ranks == 1:
            self.surprises.append(f"fault {number} ({fault}) ended in a traceback: {text[-1500:]}")
        hurt = struck and fault.kind in ("flip", "truncate") and self._hurt(run_dir, fault.kind)
        self.delivered[fault.kind] += struck
        self.phases[fault.phase] += struck
        newest = list_checkpoints(run_dir)
        at = step_of(newest[0]) if newest else 0
        codes = ",".join(str(self._last.codes.get(rank)) for rank in range(self.ranks))
        self.report(
            f"{number + 1:4d}/{self.faults} {fault}; exit {codes}; newest checkpoint: step {at}"
            f"{' (damaged)' if hurt else ''}; {time.monotonic() - begun:.1f} s"
        )

    def _choose(self, number: int, checkpoints: list[Path]) -> Fault:
        """A fault that leaves enough steps for those to come."""
        rng = random.Random(f"{self.seed} {self.ranks} {number}")
        at = step_of(checkpoints[0]) if checkpoints else 0
        budget = (number + 1) * STEPS_A_FAULT - at
        kind = "hang" if number % HANGS == HANGS // 2 else rng.choice(KINDS)
        ranks = rng.choice([tuple(range(self.ranks)), (rng.randrange(self.ranks),)])
        phase = rng.choice(PHASES)
        if kind == "hang":
            phase = rng.choice((*STEP_PHASES, "validation"))
        if kind == "full disk":
            phase = "half a checkpoint"
        if "checkpoint" in phase or "rename" in phase or "removed" in phase:
            ranks = (0,)  # the only one that writes
        if (phase == "restore" and not checkpoints) or (budget < 0 and phase not in ("clock", "restore")):
            phase = "forward" if kind in ("hang", "full disk") or not checkpoints else "restore"
            kind = "SIGKILL" if kind == "full disk" else kind
        if phase == "clock" and kind not in SIGNALS:
            kind = "SIGKILL"
        step = at + (rng.randint(0, max(0, min(2 * budget, 4 * STEPS_A_FAULT))) if phase in STEP_PHASES else 0)
        return Fault(kind, phase, min(step, self.max_steps - 2), ranks, rng.uniform(0, 1.5))

    def _hurt(self, run_dir: Path, kind: str) -> bool:
        """Damage the newest checkpoint where there is one before it."""
        found = list_checkpoints(run_dir)
        if len(found) < 2 or self.pending:
            return False
        data = bytearray(found[0].read_bytes())
        if kind == "flip":
            data[len(data) // 2] ^= 1
        found[0].write_bytes(data if kind == "flip" else data[: len(data) // 3])
        self.hurt, self.pending = self.hurt + 1, True
        return True

    def _differences(self) -> dict:
        """Everything that must be the same to the bit."""
        run_dirs = [self.root / "runs" / "tiny" / name for name in ("whole", "tortured")]
        try:
            whole, tortured = (read_checkpoint(newest_checkpoint(path)) for path in run_dirs)
        except Exception as error:
            return {"final state": f"unreadable: {error}"}
        parts = ("network", "ema", "optimizers", "schedulers", "cursor")
        series = [{t: v for t, v in scalars(path).items() if not t.startswith("perf/")} for path in run_dirs]
        return {
            **compare(Seen.read(self.root / "whole"), Seen.read(self.root / "tortured")),
            "final states that differ": [part for part in parts if not _equal(whole[part], tortured[part])],
            "curves that differ": [tag for tag in series[0] if series[0][tag] != series[1].get(tag)],
            "curves": len(series[0]),
        }

    def clean(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


def _equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return one == other
