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
from integration.tiny import series, write_experiment

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.cluster.slurm_api import SlurmJobInfo, parse_jobs
from aim_lightning.runs.directory import newest_checkpoint

HERE = Path(__file__).parent
NEEDS = ("slurmctld", "slurmd", "sbatch", "munged")
PATIENCE = 480.0  # seconds: other tests may use the processors meanwhile


def missing() -> str | None:
    """Return the reason why no cluster can be started here; None without one."""
    if os.geteuid() != 0:
        return "starting a cluster needs root; .ci/run has it"
    lacking = [name for name in NEEDS if not shutil.which(name)]
    if lacking:
        return f"{', '.join(lacking)} missing: apt-get install slurmctld slurmd slurm-client munge, or run .ci/run"
    return None


class Cluster:
    """Context manager that runs a cluster; `workspace` contains the experiment, `env` is for its commands."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.workspace = directory, directory / "workspace"

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
        self.workspace.mkdir()
        self.experiment = write_experiment(self.workspace)
        shutil.copy(HERE / "cluster.yaml", self.workspace)
        return self

    def up_daemons(self) -> None:
        """Start the daemons that do not run."""
        subprocess.run(["bash", HERE / "up.sh", self.directory], check=True, timeout=120)

    def __exit__(self, *_) -> None:
        subprocess.run(["bash", HERE / "down.sh", self.directory], check=True, timeout=120)

    def sh(self, *words, check: bool = True, **more) -> str:
        """Return the output of a command in the cluster's environment."""
        options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120}
        done = subprocess.run([str(word) for word in words], env=self.env | more, **options)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def aim(self, *words, check: bool = True) -> str:
        """Run an `aim-lightning` command with the experiment and the section `cluster`."""
        command, *rest = words
        files = ["--config", self.experiment, "--config", self.workspace / "cluster.yaml"]
        action = [rest.pop(0)] if command == "slurm" else []
        return self.sh(sys.executable, "-m", "aim_lightning", command, *action, *files, *rest, check=check)

    def reference(self, nodes: int) -> "Run":
        """Return the uninterrupted run with N ranks; the first caller starts it."""
        with self.locks[nodes]:
            if nodes not in self.references:
                run = self.submit(f"uninterrupted{nodes}", "--callbacks.probe.pause", "0", nodes=nodes)
                self.references[nodes] = run.ends()
        return self.references[nodes]

    def script(self, name: str, *lines: str, nodes: int = 2) -> "Run":
        """Submit a job script of these lines with one task per node."""
        path, log = self.workspace / f"{name}.sbatch", self.workspace / "runs/tiny" / name / "slurm-%j.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        head = f"--nodes={nodes} --ntasks-per-node=1 --cpus-per-task=1 --time=10 --output={log}"
        path.write_text("\n".join(["#!/bin/bash", f"#SBATCH {head}", *lines]) + "\n")
        return Run(self, name, self.sh("sbatch", "--parsable", path).strip())

    def break_node(self, node: str, pid: int) -> None:
        """Kill the daemon of a node, the step of this process, and the process."""
        daemon = int((self.directory / "run" / f"slurmd.{node}.pid").read_text())
        for number in (daemon, *_ancestors(pid), pid):
            os.kill(number, signal.SIGKILL)
        self.sh("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def repair_node(self, node: str) -> None:
        self.up_daemons()
        self.sh("scontrol", "update", f"nodename={node}", "state=resume", check=False)

    def submit(self, run: str, *options, nodes: int = 1) -> "Run":
        """Submit a run of the tiny experiment."""
        text = self.aim("slurm", "submit", "--run", run, "--trainer.num_nodes", nodes, *options)
        return Run(self, run, re.search(r"^job (\d+)", text, re.M)[1], nodes=nodes)


class Run:
    """A submitted run; `restarts` is set at the end of its job."""

    def __init__(self, cluster: Cluster, name: str, job: str, logs: str | None = None, nodes: int = 1) -> None:
        self.cluster, self.name, self.job, self.nodes = cluster, name, job, nodes
        self.directory = cluster.workspace / "runs" / "tiny" / name
        self.logs = cluster.workspace / "runs" / "tiny" / (logs or name)

    @property
    def log(self) -> str:
        path = self.logs / f"slurm-{self.job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def info(self) -> SlurmJobInfo:
        return parse_jobs(self.cluster.sh("scontrol", "show", "job", self.job))[0]

    def until(self, condition, seconds: float = PATIENCE):
        """Wait until `condition()` is true and return its value; fail with the log."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.1)
        raise AssertionError(f"{self.name} (job {self.job}): {self.info}\n{self.log}")

    def match(self, pattern: str) -> re.Match:
        """Return the first match in the log; fail with the whole log."""
        match = re.search(pattern, self.log)
        assert match, f"{self.name} (job {self.job}) does not log {pattern}:\n{self.log}"
        return match

    def assert_logged(self, *messages: str) -> None:
        for message in messages:
            self.match(re.escape(message))

    def trace(self, rank: int = 0) -> list[tuple[int, str, int, int, float]]:
        """Return rows (start of the job, phase, step, pid, time) so far."""
        path = self.directory / f"trace-{rank}"
        rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(int(row[0]), row[1], int(row[2]), int(row[3]), float(row[4])) for row in rows if len(row) == 5]

    def reaches(self, phase: str, step: int = 0, starts: int = 0, rank: int = 0):
        """Wait for a phase at a step or later and return its row."""

        def find():
            rows = self.trace(rank)
            return next((r for r in rows if r[0] == starts and r[1] == phase and r[2] >= step), None)

        return self.until(find)

    def interrupt(self, *phase, name: str = "USR1", state: str = "COMPLETED") -> "Run":
        """Send a signal in a phase, given as for `reaches`, and wait for the end of the job."""
        self.reaches(*phase)
        self.send(name)
        return self.ends(state)

    def processes(self) -> list[int]:
        """Return the process numbers of its ranks from their start on."""
        words = [b"aim_lightning", b"fit", b"--config", str(self.directory / "job.yaml").encode()]
        result = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                line, program = path.read_bytes(), path.with_name("comm").read_bytes()
                if line.rstrip(b"\0").split(b"\0")[-4:] == words and b"python" in line[:200] and b"srun" not in program:
                    result.append(int(path.parent.name))
        return result

    def send(self, name: str) -> None:
        """Send a signal to all processes of the steps, as --signal does."""
        self.cluster.sh("scancel", f"--signal={name}", self.job)

    def send_to_rank(self, rank: int, number: int = signal.SIGUSR1) -> None:
        """Send a signal to one process only."""
        os.kill(self.trace(rank)[-1][3], number)

    def ends(self, state: str = "COMPLETED") -> "Run":
        """Wait for the end of the job, in this state."""
        final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        info = self.until(lambda: (info := self.info).state in final and info)
        assert info.state == state, f"{info}\n{self.log}"
        self.restarts = info.restarts
        return self

    def result(self) -> tuple[dict, dict]:
        """Return all weights of the last checkpoint, and the TensorBoard curves without speeds."""
        path = newest_checkpoint(self.directory)
        content = read_checkpoint(path)
        assert content["trainer"]["global_step"] == 22
        parts = {"network": content["network"], "ema": content["ema"].get("network", content["ema"])}
        weights = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        return weights, series(self.directory)

    def assert_equals_uninterrupted(self, restarts: int = 1) -> None:
        """Compare weights and curves with the uninterrupted run bit by bit; no step is repeated or missing."""
        assert self.restarts == restarts
        (weights, curves), (expected, expected_curves) = self.result(), self.cluster.reference(self.nodes).result()
        assert weights.keys() == expected.keys()
        assert [name for name in weights if not torch.equal(weights[name], expected[name])] == []
        assert [step for step, _ in curves["train/loss"]] == list(range(1, 23))
        assert curves == expected_curves


def _ancestors(pid: int) -> list[int]:
    """Return the slurmstepd processes above a process."""
    result = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if Path(f"/proc/{pid}/comm").read_text().startswith("slurmstepd"):
            result.append(pid)
    return result
