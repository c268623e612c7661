"""A log of what each training step saw, written by the process itself so that no kill can lose it."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

Key = tuple[int, int, int]  # optimizer step, micro-batch, rank


def record_steps(directory: Path, rank: int) -> None:
    """Hang a recorder into AiMModule: step, micro-batch, rank, epoch, rows and the loss to the bit."""
    from aim_lightning.modules.aim import AiMModule

    descriptor = os.open(directory / f"rows-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    original = AiMModule.training_step

    def patched(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        data = self.trainer.datamodule
        place = (data.steps, batch_idx % data.plan.accumulate, rank, int(batch["epoch"]))
        rows = ",".join(map(str, batch["index"].tolist()))
        os.write(descriptor, f"{' '.join(map(str, place))} {rows} {float(loss.detach()).hex()}\n".encode())
        return loss

    AiMModule.training_step = patched


@dataclass
class Seen:
    """What one run trained on: every record, and the last one of each place."""

    all: dict[Key, set[tuple]] = field(default_factory=dict)
    last: dict[Key, tuple] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "Seen":
        seen = cls()
        for path in sorted(directory.glob("rows-*.log")):
            for line in path.read_text().splitlines():
                step, micro, rank, epoch, rows, loss = line.split()
                key = (int(step), int(micro), int(rank))
                seen.last[key] = (int(epoch), tuple(map(int, rows.split(","))), loss)
                seen.all.setdefault(key, set()).add(seen.last[key])
        return seen

    def epochs(self) -> dict[int, Counter]:
        """How often each row counts for the weights, by epoch."""
        found: dict[int, Counter] = {}
        for epoch, rows, _ in self.last.values():
            found.setdefault(epoch, Counter()).update(rows)
        return found


def compare(whole: Seen, tortured: Seen) -> dict[str, int]:
    """Rows lost and doubled, and records that differ from the plan: rows or loss, also of steps that were repeated."""
    plan, found = whole.epochs(), tortured.epochs()
    lost = sum(((plan[epoch] - found.get(epoch, Counter())).total()) for epoch in plan)
    doubled = sum((counts - plan.get(epoch, Counter())).total() for epoch, counts in found.items())
    other = sum(records != {whole.last.get(key)} for key, records in tortured.all.items())
    twice = sum(count > 1 for counts in plan.values() for count in counts.values())
    return {
        "rows lost": lost,
        "rows doubled": doubled,
        "records unlike the plan": other,
        "rows twice in the plan": twice,
    }
