"""A real SLURM cluster on this machine, and runs of the tiny experiment on it."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from conftest import ROOT
from integration.tiny import scalars, write_experiment

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.cluster.slurm_api import SlurmJobInfo, parse_jobs
from aim_lightning.runs.directory import newest_checkpoint

HERE = Path(__file__).parent
NEEDS = ("slurmctld", "slurmd", "sbatch", "munged")
PATIENCE = 480.0  # seconds: other tests may use the processors meanwhile
CLUSTER = """
cluster:
  cpus_per_task: 1
  partition: main
  time: 00:30:00
  hang_seconds: 120
callbacks:
  probe: {class_path: slurm_probe.Probe, init_args: {pause: 1.0}}
trainer: {accelerator: cpu, strategy: ddp}
"""


def missing() -> str | None:
    """Why there can be no cluster here."""
    if os.geteuid() != 0:
        return "a cluster of one's own needs root; .ci/run has it"
    lacking = [name for name in NEEDS if not shutil.which(name)]
    if lacking:
        return f"{', '.join(lacking)} missing: apt-get install slurmctld slurmd slurm-client munge, or run .ci/run"
    return None


class Cluster:
    """Context manager; `place` holds the experiment, `env` what its commands need."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.place = directory, directory / "place"

    def __enter__(self) -> "Cluster":
        self.up_daemons()
        self.references: dict[int, Run] = {}
        self.locks = {nodes: threading.Lock() for nodes in (1, 2)}
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
            "SLURM_CONF": str(self.directory / "etc/slurm.conf"),
            "PYTHONPATH": f"{ROOT}:{HERE}:{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
        }
        self.place.mkdir()
        self.experiment = write_experiment(self.place)
        (self.place / "cluster.yaml").write_text(CLUSTER)
        return self

    def up_daemons(self) -> None:
        """Starts what is not running."""
        subprocess.run(["bash", HERE / "up.sh", self.directory], check=True, timeout=120)

    def __exit__(self, *_) -> None:
        subprocess.run(["bash", HERE / "down.sh", self.directory], check=True, timeout=120)

    def sh(self, *words, check: bool = True, **more) -> str:
        """Output of a command in the cluster's environment."""
        done = subprocess.run(
            [str(word) for word in words],
            env={**self.env, **more},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def aim(self, *words, check: bool = True) -> str:
        """An `aim-lightning` command with the experiment and the cluster's section."""
        command, *rest = words
        files = ["--config", self.experiment, "--config", self.place / "cluster.yaml"]
        action = [rest.pop(0)] if command == "slurm" else []
        return self.sh(sys.executable, "-m", "aim_lightning", command, *action, *files, *rest, check=check)

    def reference(self, nodes: int) -> "Run":
        """Return the uninterrupted run with N ranks; the first caller starts it."""
        with self.locks[nodes]:
            if nodes not in self.references:
                run = self.submit(f"whole{nodes}", "--callbacks.probe.pause", "0", nodes=nodes)
                run.ends()
                self.references[nodes] = run
        return self.references[nodes]

    def script(self, name: str, *lines: str, nodes: int = 2) -> "Run":
        """A job script of one's own, a task a node."""
        path, log = self.place / f"{name}.sbatch", self.place / "runs/tiny" / name / "slurm-%j.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        head = f"--nodes={nodes} --ntasks-per-node=1 --cpus-per-task=1 --time=10 --output={log}"
        path.write_text("\n".join(["#!/bin/bash", f"#SBATCH {head}", *lines]) + "\n")
        return Run(self, name, self.sh("sbatch", "--parsable", path).strip())

    def break_node(self, node: str, pid: int) -> None:
        """Its daemon, the step that holds this process, and the process are gone from one moment to the next."""
        daemon = int((self.directory / "run" / f"slurmd.{node}.pid").read_text())
        for one in (daemon, *_ancestors(pid), pid):
            os.kill(one, signal.SIGKILL)
        self.sh("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def repair_node(self, node: str) -> None:
        self.up_daemons()
        self.sh("scontrol", "update", f"nodename={node}", "state=resume", check=False)

    def submit(self, run: str, *options, nodes: int = 1) -> "Run":
        """`aim-lightning slurm submit` for the tiny experiment."""
        text = self.aim("slurm", "submit", "--run", run, "--trainer.num_nodes", nodes, *options)
        return Run(self, run, re.search(r"^job (\d+)", text, re.M)[1])


class Run:
    """A submitted run."""

    def __init__(self, cluster: Cluster, name: str, job: str, logs: str | None = None) -> None:
        self.cluster, self.name, self.job = cluster, name, job
        self.directory = cluster.place / "runs" / "tiny" / name
        self.logs = cluster.place / "runs" / "tiny" / (logs or name)

    @property
    def log(self) -> str:
        path = self.logs / f"slurm-{self.job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def facts(self) -> SlurmJobInfo:
        return parse_jobs(self.cluster.sh("scontrol", "show", "job", self.job))[0]

    def until(self, what, seconds: float = PATIENCE):
        """Wait until `what()` is true; fail with the log."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = what()
            if value:
                return value
            time.sleep(0.1)
        raise AssertionError(f"{self.name} (job {self.job}): {self.facts}\n{self.log}")

    def matches(self, pattern: str) -> re.Match:
        """The first place of its log that fits; fails with the whole log."""
        found = re.search(pattern, self.log)
        assert found, f"{self.name} (job {self.job}) does not say {pattern}:\n{self.log}"
        return found

    def says(self, *words: str) -> None:
        """Fails with the whole log where any of these is not in it."""
        for one in words:
            self.matches(re.escape(one))

    def trace(self, rank: int = 0) -> list[tuple[int, str, int, int, float]]:
        """(start of the job, phase, step, pid, time) so far."""
        path = self.directory / f"trace-{rank}"
        rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(int(row[0]), row[1], int(row[2]), int(row[3]), float(row[4])) for row in rows if len(row) == 5]

    def reaches(self, phase: str, step: int = 0, starts: int = 0, rank: int = 0):
        """Wait for a phase at a step or later; its row."""

        def find():
            rows = self.trace(rank)
            return next((r for r in rows if r[0] == starts and r[1] == phase and r[2] >= step), None)

        return self.until(find)

    def processes(self) -> list[int]:
        """Process numbers of its ranks, from their first instant on."""
        words = [b"aim_lightning", b"fit", b"--config", str(self.directory / "job.yaml").encode()]
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if path.read_bytes().rstrip(b"\0").split(b"\0")[-4:] == words and b"python" in path.read_bytes()[:200]:
                    found.append(int(path.parent.name))
        return [pid for pid in found if b"srun" not in Path(f"/proc/{pid}/comm").read_bytes()]

    def send(self, name: str) -> None:
        """To all processes of the steps, as --signal does it."""
        self.cluster.sh("scancel", f"--signal={name}", self.job)

    def send_to_rank(self, rank: int, number: int = signal.SIGUSR1) -> None:
        """To one process alone."""
        os.kill(self.trace(rank)[-1][3], number)

    def ends(self, state: str = "COMPLETED") -> SlurmJobInfo:
        """Wait for the end of the job, which must be this one."""
        final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        facts = self.until(lambda: (f := self.facts).state in final and f)
        assert facts.state == state, f"{facts}\n{self.log}"
        return facts

    def result(self) -> tuple[dict, dict]:
        """(all weights of the last checkpoint, TensorBoard series without speeds)."""
        path = newest_checkpoint(self.directory)
        content = read_checkpoint(path)
        assert content["trainer"]["global_step"] == 22
        weights = {f"{part}.{n}": w for part in ("network", "ema") for n, w in _weights(content[part]).items()}
        series = {tag: values for tag, values in scalars(self.directory).items() if not tag.startswith("perf/")}
        return weights, series

    def is_like(self, reference: "Run") -> None:
        """Final weights and every curve are those of the uninterrupted run, to the bit; no step twice, no gap."""
        (mine, curves), (theirs, expected) = self.result(), reference.result()
        assert mine.keys() == theirs.keys()
        assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
        assert [step for step, _ in curves["train/loss"]] == list(range(1, 23))
        assert curves == expected


def _ancestors(pid: int) -> list[int]:
    """The slurmstepd above a process."""
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if Path(f"/proc/{pid}/comm").read_text().startswith("slurmstepd"):
            found.append(pid)
    return found


def _weights(part: dict) -> dict:
    return part.get("network", part)
