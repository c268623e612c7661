"""history.jsonl: every start of a run, with what had changed since the one before."""

import datetime
import json
import os
import socket

from aim_lightning.runs.directory import RunDirectory
from aim_lightning.runs.results import commit
from aim_lightning.runs.resume_policy import Decision
from aim_lightning.utils.files import tolerate_disk_errors


def append_start(directory: RunDirectory, decision: Decision) -> None:
    """Add a line: when, where, from which step and checkpoint, changes of the configuration, other notes."""
    entry = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "commit": commit(),
        "action": decision.action,
        "step": decision.step,
        "checkpoint": decision.checkpoint.name if decision.checkpoint else None,
        "changes": decision.changes,
        "notes": [note for note in decision.notes if not any(note.endswith(line) for line in decision.changes)],
    }
    directory.path.mkdir(parents=True, exist_ok=True)
    with tolerate_disk_errors(directory.history), directory.history.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")
