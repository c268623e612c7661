"""Compare two undisturbed trainings of AiM-B and one stopped by SIGUSR1, SIGTERM and SIGKILL: how far apart are they?

python benchmarks/interruptions.py [--devices 2] [--steps 300] [-- --model.network.n_layer 4 …]

On simulated token shards. Options after -- go to `aim-lightning fit`. The interrupted run is as good as the others when
its distance from the first is that of the second. After --seconds all end, and the steps done are compared; `stops` is
the number of signals sent.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lightning.pytorch import Callback
from record import save
from tokens import simulate

ROOT = Path(__file__).parents[1]
STOPS = {signal.SIGUSR1: 138, signal.SIGTERM: 143, signal.SIGKILL: -9}  # and the exit code that each must lead to


class TimeIsUp(Exception):
    """Error after --seconds, which end all trainings."""


class Trace(Callback):
    """Callback that writes a line per step: step, loss, rows of the global batch's first micro-batch, time."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.is_global_zero:
            line = {"step": trainer.global_step, "loss": float(outputs["loss"]), "rows": batch["index"].tolist()[:8]}
            with self.path.open("a") as file:
                file.write(json.dumps({**line, "time": time.time()}) + "\n")


class Run:
    """A training in `directory` that can be started several times."""

    def __init__(self, name: str, directory: Path, options: argparse.Namespace) -> None:
        self.trace = directory / f"{name}.jsonl"
        section = {"class_path": "interruptions.Trace", "init_args": {"path": str(self.trace)}}
        trainer = {"devices": options.devices, "max_steps": options.steps, "max_epochs": -1, "log_every_n_steps": 1}
        trainer |= {"val_check_interval": options.steps, "check_val_every_n_epoch": None, "limit_val_batches": 2}
        checkpoints = {"init_args": {"every_n_steps": options.steps // 6}}
        values = {
            "callbacks": {"trace": section, "sample_grid": None, "sample_metrics": None, "checkpoints": checkpoints},
            "data": {"init_args": {"path": str(directory / "tokens"), "global_batch_size": options.batch}},
            "runs_root": str(directory / "runs"),
            "tokenizer": None,
            "trainer": trainer,
        }
        extra = directory / f"{name}.yaml"
        extra.write_text(json.dumps(values))
        self.until, self.stops = options.until, 0
        files = ("--config", f"experiments/{options.experiment}.yaml", "--config", str(extra))
        self.command = [sys.executable, "-m", "aim_lightning", "fit", *files, "--run", name, *options.fit]

    def start(self) -> subprocess.Popen:
        path = f"{ROOT / 'benchmarks'}:{ROOT}:{os.environ.get('PYTHONPATH', '')}"
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(self.command, cwd=ROOT, env=environment, start_new_session=True)

    def finish(self, process: subprocess.Popen | None = None) -> None:
        """Wait until the training ends; start it if it is not running."""
        if code := self._wait(process or self.start()):
            raise SystemExit(f"training ended with exit code {code}: {' '.join(self.command)}")

    def _wait(self, process: subprocess.Popen) -> int:
        """Return the exit code; kill the process and raise TimeIsUp after the time for all trainings."""
        try:
            return process.wait(self.until and max(0.0, self.until - time.monotonic()))
        except subprocess.TimeoutExpired:
            kill(process)
            raise TimeIsUp from None

    def stop_at(self, step: int, number: signal.Signals) -> None:
        """Start the training and send a signal once a step is done; SIGKILL goes to all its processes."""
        process = self.start()
        while not any(row["step"] >= step for row in self.rows()):
            if process.poll() is not None:
                raise SystemExit(f"training ended with exit code {process.returncode} before step {step}")
            if self.until and time.monotonic() > self.until:
                kill(process)
                raise TimeIsUp
            time.sleep(0.05)
        (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)
        if self._wait(process) != STOPS[number]:
            raise SystemExit(f"{number.name} after step {step} stopped nothing: exit code {process.returncode}")
        self.stops += 1
        print(f"{number.name} after step {step}: exit code {process.returncode}", flush=True)

    def rows(self) -> list[dict]:
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def curve(self) -> dict[int, dict]:
        """Return the last micro-batch of each step, from the process that trained it last."""
        return {row["step"]: row for row in self.rows()}


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def distance(curve: dict[int, dict], other: dict[int, dict]) -> dict[str, float]:
    """Return the largest and the mean relative difference of the loss over the common steps."""
    apart = [abs(curve[s]["loss"] - other[s]["loss"]) / curve[s]["loss"] for s in sorted(set(curve) & set(other))]
    return {"largest": max(apart), "mean": statistics.mean(apart)} if apart else {}


def rows_agree(curve: dict[int, dict], other: dict[int, dict]) -> bool | None:
    """Return True if both saw the same rows at every common step; None without a common step."""
    steps = set(curve) & set(other)
    return all(curve[step]["rows"] == other[step]["rows"] for step in steps) if steps else None


def train(directory: Path, options: argparse.Namespace) -> tuple[list[dict[int, dict]], int]:
    """Return the curves of two undisturbed trainings and of the interrupted one, and the number of its stops.

    No training outlives a failure of another.
    """
    first, second, cut = (Run(name, directory, options) for name in ("first", "second", "cut"))
    concurrent = {run: run.start() for run in (first, second)} if options.together else {}
    try:
        for run in () if options.together else (first, second):
            run.finish()
        for part, number in zip((0.23, 0.48, 0.76), STOPS, strict=True):
            cut.stop_at(int(options.steps * part), number)
        cut.finish()
        for run, process in concurrent.items():
            run.finish(process)
    except TimeIsUp:
        print("time is up: the steps done so far are compared", flush=True)
    finally:
        for process in concurrent.values():
            if process.poll() is None:
                kill(process)
    return [run.curve() for run in (first, second, cut)], cut.stops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="imagenet256_aim_b", help="of 16x16 codes of 16,384, 1,000 classes")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each run, at least 12")
    parser.add_argument("--batch", type=int, default=128, help="images, all devices together")
    together = "run all three concurrently: sooner, with three times the memory"
    parser.add_argument("--together", action="store_true", help=together)
    parser.add_argument("--seconds", type=float, help="time for all trainings (default: any)")
    parser.add_argument("fit", nargs="*", help="after --: options of aim-lightning fit")
    options = parser.parse_args()
    options.until = options.seconds and time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for split, rows in (("train", max(20000, 4 * options.batch)), ("val", 1024)):
            (directory / "tokens" / split).mkdir(parents=True)
            simulate(directory / "tokens" / split, rows, 1)
        curves, stops = train(directory, options)
    row = {name: getattr(options, name) for name in ("together", "devices", "steps", "batch")} | {"stops": stops}
    row |= {"undisturbed_apart": distance(*curves[:2]), "interrupted_apart": distance(curves[0], curves[2])}
    row |= {"steps_of_interrupted": len(curves[2]), "same_rows_at_every_step": rows_agree(curves[0], curves[2])}
    print(json.dumps(row, indent=1))
    print(f"written to {save('interruptions', [row])}")


if __name__ == "__main__":
    main()
