"""A log of the rows of each training step, written by the process itself so that no kill can lose it."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

Key = tuple[int, int, int]  # optimizer step, micro-batch, rank


def record_steps(directory: Path, rank: int) -> None:
    """Make AiMModule log each step: step, micro-batch, rank, epoch, rows and the exact loss."""
    from aim_lightning.modules.aim import AiMModule

    descriptor = os.open(directory / f"rows-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    original = AiMModule.training_step

    def patched(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        data = self.trainer.datamodule
        key = f"{data.steps} {batch_idx % data.plan.accumulate} {rank} {int(batch['epoch'])}"
        rows = ",".join(map(str, batch["index"].tolist()))
        os.write(descriptor, f"{key} {rows} {float(loss.detach()).hex()}\n".encode())
        return loss

    AiMModule.training_step = patched


@dataclass
class Trace:
    """Records (epoch, rows, loss) of one run by key: all of them, and the last one, which counts for the weights."""

    all: dict[Key, set[tuple]] = field(default_factory=dict)
    last: dict[Key, tuple] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "Trace":
        trace = cls()
        for path in sorted(directory.glob("rows-*.log")):
            for line in path.read_text().splitlines():
                *key, epoch, rows, loss = line.split()
                key = tuple(map(int, key))
                trace.last[key] = (int(epoch), tuple(map(int, rows.split(","))), loss)
                trace.all.setdefault(key, set()).add(trace.last[key])
        return trace

    def epochs(self) -> Counter:
        """Count how often each (epoch, row) contributes to the weights."""
        return Counter((epoch, row) for epoch, rows, _ in self.last.values() for row in rows)


def compare(undisturbed: Trace, tortured: Trace) -> dict[str, int]:
    """Count rows lost and doubled, and records that differ from the plan, also of steps that were repeated."""
    plan, trained = undisturbed.epochs(), tortured.epochs()
    return {
        "rows lost": (plan - trained).total(),
        "rows doubled": (trained - plan).total(),
        "records unlike the plan": sum(records != {undisturbed.last.get(k)} for k, records in tortured.all.items()),
        "rows twice in the plan": sum(count > 1 for count in plan.values()),
    }
