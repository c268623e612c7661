"""Read how far a run got, and append its starts to history.jsonl."""

import datetime
import json
import os
import socket
from pathlib import Path
from typing import Any

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.checkpoint.torch_load import DamagedFile, UnreadableFile
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.runs.results import commit
from aim_lightning.runs.resume_policy import Decision, Progress, RunContent
from aim_lightning.utils.files import make_directory, tolerate_disk_errors
from aim_lightning.utils.process import beat

VALIDATED_BY = "ResumeState"  # callback whose state in a checkpoint contains the last validation
TIMED_BY = "Timer"  # Lightning's callback of trainer.max_time


def read_content(directory: RunDirectory, now: dict[str, Any], verify: bool = True) -> RunContent:
    """Find the newest undamaged checkpoint of a run, for the decision of `resume_policy.decide`.

    Args:
        directory: of the run.
        now: the requested configuration.
        verify: compare checksums, which reads whole files.

    Raises:
        UnreadableFile: this version cannot read an undamaged checkpoint, so no older one may replace it.
        TransientError: a checkpoint cannot be read now.
    """
    damaged: dict[Path, str] = {}
    for path in directory.checkpoints():
        beat(f"reading {path.name}")
        try:
            content = read_checkpoint(path, verify)
        except UnreadableFile as error:
            # An intact checkpoint of another version must not be set aside and replaced by an older one.
            if path.exists() and not isinstance(error, DamagedFile):
                raise
            damaged[path] = str(error)
            continue
        trainer = content["trainer"]
        imported, callbacks = trainer.get("imported_from"), trainer.get("callbacks") or {}
        seconds = callbacks.get(TIMED_BY, {}).get("time_elapsed", {}).get("train", 0.0)
        progress = Progress(path, trainer["global_step"], content["cursor"]["epoch"], seconds)
        validation = callbacks.get(VALIDATED_BY, {}).get("validation", {})  # absent from older checkpoints
        return RunContent(progress, damaged, content["configuration"], now, imported, content["data"], validation)
    return RunContent(None, damaged, {}, now)


def append_start(directory: RunDirectory, decision: Decision) -> None:
    """Append a line to history.jsonl: time, host, first step, checkpoint, changes of the configuration, notes."""
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    process = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
    checkpoint = decision.checkpoint.name if decision.checkpoint else None
    notes = [note for note in decision.notes if not any(note.endswith(line) for line in decision.changes)]
    entry = {"time": time, **process, "commit": commit(), "action": decision.action, "step": decision.step}
    entry |= {"checkpoint": checkpoint, "changes": decision.changes, "notes": notes}
    make_directory(directory.path)
    # Nothing reads the history to train: a full disk must not end the training.
    with tolerate_disk_errors(directory.history), directory.history.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")
