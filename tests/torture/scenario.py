"""A run with faults, compared with one without."""

import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from helpers import TINY, flip_bit, write_tokens
from integration.tiny import PARTS, equal, series, write_config

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.runs.directory import RunDirectory, newest_checkpoint
from torture.faults import PHASES, SIGNALS, STEP_PHASES, Fault, arm
from torture.processes import Start
from torture.rows import Trace, compare, record_steps

SHARDS = [90, 70, 53]
STEPS_PER_FAULT = 5  # average steps that a run gains between two faults
GRACE = 10.0  # seconds for the other ranks after one has ended, and for a stop at a batch boundary
HANG = 15  # cluster.hang_seconds of a start that hangs
STALL = 45.0  # seconds without output after which a start is killed
KINDS = ("SIGKILL", "SIGKILL", "SIGTERM", "SIGUSR1", "SIGUSR1", "full disk", "flip", "truncate")
HANGS = 12  # one of this many faults is a hang, which takes seconds to be noticed


@dataclass
class Scenario:
    """A tiny AiM, accumulation of 2, checkpoints every 4 steps, validation every 6.

    Args:
        root: directory of all files.
        ranks: number of processes.
        faults: number of faults.
        seed: of the faults.
    """

    root: Path
    ranks: int
    faults: int
    seed: int
    delivered: Counter = field(default_factory=Counter)
    phases: Counter = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    starts: int = 0
    damaged: int = 0  # checkpoints
    named: int = 0  # damaged checkpoints that the next start has named
    pending: bool = False  # a damaged checkpoint that no start has read yet

    def __post_init__(self) -> None:
        self.max_steps = STEPS_PER_FAULT * self.faults + 30
        self.run_directory = RunDirectory("tiny", "tortured", self.root / "runs")

    def run(self) -> dict:
        """Train without faults and with faults, and return the report."""
        write_tokens(self.root / "tokens" / "train", SHARDS, views=2, config=TINY)
        write_tokens(self.root / "tokens" / "val", [19], views=2, config=TINY, seed=1)
        write_config(self.root)
        begin = time.monotonic()
        undisturbed = self._start("undisturbed", None)
        seconds = time.monotonic() - begin
        if undisturbed.codes != dict.fromkeys(range(self.ranks), 0):
            raise RuntimeError(f"the run without faults failed:\n{undisturbed.text()}")
        for number in range(self.faults):
            self._disturb(number)
        last = self._start("tortured", None)
        if any(last.codes.values()):
            self.surprises.append(f"the last start failed: {last.text()[-2000:]}")
        return {
            "ranks": self.ranks,
            "faults": sum(self.delivered.values()),
            "by kind": dict(self.delivered),
            "by phase": dict(self.phases),
            "damaged checkpoints": self.damaged,
            "of them named": self.named,
            "starts": self.starts - 1,
            "steps": self.max_steps,
            "seconds without faults": round(seconds, 1),
            "seconds": round(time.monotonic() - begin - seconds, 1),
            **self._differences(),
            "surprises": self.surprises,
        }

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
        single = {"trainer.precision": "bf16-mixed", "data.num_workers": 1}
        options |= {"trainer.strategy": "ddp"} if self.ranks > 1 else single
        options |= {"cluster.hang_seconds": HANG} if fault and fault.kind == "hang" else {}
        return ["fit", *(text for name, value in options.items() for text in (f"--{name}", str(value)))]

    def _start(self, run: str, fault: Fault | None, marks: Path | None = None) -> Start:
        """Start a training and return it after its end."""
        self.starts += 1
        directory = self.root / run
        directory.mkdir(exist_ok=True)

        def prepare(rank: int) -> None:
            if fault:
                arm(fault, rank, marks)
            record_steps(directory, rank)

        log = directory / f"start-{self.starts:04d}.log"
        start = Start(self._arguments(run, fault), self.ranks, log, prepare).launch()
        if fault and fault.phase == "clock" and not start.wait(fault.seconds):
            start.send(SIGNALS[fault.kind], fault.ranks)
            (marks / "struck-clock").touch()
        _watch(start, directory)
        text = start.text()
        # A start that got as far as its decision must name the checkpoint that was damaged before it.
        if self.pending and "training from" in text:
            self.pending, named = False, "ignoring damaged checkpoint" in text
            self.named += named
            self._expect(named, f"a damaged checkpoint was not named: {text[-1500:]}")
        return start

    def _expect(self, condition: bool, text: str) -> None:
        if not condition:
            self.surprises.append(text)

    def _disturb(self, number: int) -> None:
        fault, begin = self._choose(number), time.monotonic()
        marks = self.root / f"marks-{number:04d}"
        marks.mkdir()
        start = self._start("tortured", fault, marks)
        text, struck = start.text(), any(marks.glob("struck-*"))
        name, end = f"fault {number} ({fault})", text[-1500:]
        self._expect(struck, f"{name} did not happen: {start.codes} {end}")
        self._expect(fault.kind != "full disk" or "could not be written" in text, f"{name} was not named: {end}")
        hang = fault.kind == "hang" and struck
        self._expect(not hang or "no progress for" in text, f"{name} was not noticed: {end}")
        traceback = 98 in start.codes.values() and self.ranks == 1
        self._expect(not traceback, f"{name} ended in a traceback: {end}")
        damaged = struck and fault.kind in ("flip", "truncate") and self._damage(fault.kind)
        self.delivered[fault.kind] += struck
        self.phases[fault.phase] += struck
        codes = ",".join(str(start.codes.get(rank)) for rank in range(self.ranks))
        newest = f"step {self.run_directory.latest_step}{' (damaged)' if damaged else ''}"
        line = f"{number + 1:4d}/{self.faults} {fault}; exit {codes}; newest checkpoint: {newest}"
        print(f"[{self.ranks} rank(s)] {line}; {time.monotonic() - begin:.1f} s", flush=True)

    def _choose(self, number: int) -> Fault:
        """Return a fault that leaves enough steps for the later ones."""
        rng, step = random.Random(f"{self.seed} {self.ranks} {number}"), self.run_directory.latest_step
        budget, checkpoints = (number + 1) * STEPS_PER_FAULT - step, self.run_directory.checkpoints()
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
        later = rng.randint(0, max(0, min(2 * budget, 4 * STEPS_PER_FAULT))) if phase in STEP_PHASES else 0
        return Fault(kind, phase, min(step + later, self.max_steps - 2), ranks, rng.uniform(0, 1.5))

    def _damage(self, kind: str) -> bool:
        """Damage the newest checkpoint if an older one exists; return True if done."""
        checkpoints = self.run_directory.checkpoints()
        if len(checkpoints) < 2 or self.pending:
            return False
        size = checkpoints[0].stat().st_size
        if kind == "flip":
            flip_bit(checkpoints[0], size // 2)
        else:
            os.truncate(checkpoints[0], size // 3)
        self.damaged, self.pending = self.damaged + 1, True
        return True

    def _differences(self) -> dict:
        """Compare rows, final states and curves, which must be equal to the bit."""
        runs = [self.root / "runs" / "tiny" / name for name in ("undisturbed", "tortured")]
        try:
            states = [read_checkpoint(newest_checkpoint(path)) for path in runs]
        except Exception as error:
            return {"final state": f"unreadable: {error}"}
        curves, tortured_curves = map(series, runs)
        return {
            **compare(*(Trace.read(self.root / path.name) for path in runs)),
            "final states that differ": [part for part in PARTS if not equal(*(state.get(part) for state in states))],
            "curves that differ": [tag for tag in curves if curves[tag] != tortured_curves.get(tag)],
            "curves": len(curves),
        }


def _watch(start: Start, directory: Path) -> None:
    """Wait until all ranks have ended; kill the rest when one ended long ago, or when there is no output."""
    size, changed, ended = -1, time.monotonic(), None
    while not start.poll():
        time.sleep(0.01)
        now, total = time.monotonic(), sum(path.stat().st_size for path in directory.glob("*.log"))
        size, changed = (total, now) if total != size else (size, changed)
        ended = ended or (now if start.codes else None)
        stalled = now - changed > (STALL if total > 0 and "training from" in start.text() else 60)
        if stalled or (ended and now - ended > GRACE):
            break
    start.kill()
