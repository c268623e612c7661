"""Two undisturbed trainings of AiM-B, and one stopped by SIGUSR1, SIGTERM and SIGKILL: how far apart are the curves?

python benchmarks/interruptions.py [--devices 2] [--steps 300] [-- --model.network.n_layer 4 …]

On simulated token shards. What stands behind -- goes to `aim-lightning fit`. The interrupted run is as good as the
others when its distance from the first is that of the second. When --seconds are over all end, and what they had
trained by then is compared; `stops` says how many there were.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback
from record import save
from tokens import simulate

ROOT = Path(__file__).parents[1]
STOPS = {signal.SIGUSR1: 138, signal.SIGTERM: 143, signal.SIGKILL: -9}  # and the exit code that each must lead to


class TimeIsUp(Exception):
    """The trainings have taken as long as they may."""


class Trace(Callback):
    """Writes a line a step: step, loss, rows of the global batch's first micro-batch, time."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.is_global_zero:
            line = {"step": trainer.global_step, "loss": float(outputs["loss"]), "rows": batch["index"].tolist()[:8]}
            with self.path.open("a") as file:
                file.write(json.dumps({**line, "time": time.time()}) + "\n")


class Run:
    """One training in `directory`, started as often as it takes."""

    def __init__(self, name: str, directory: Path, options: argparse.Namespace) -> None:
        self.trace = directory / f"{name}.jsonl"
        config = f"experiments/{options.experiment}.yaml"
        section = {"class_path": "interruptions.Trace", "init_args": {"path": str(self.trace)}}
        (directory / f"{name}.yaml").write_text(json.dumps({"callbacks": {"trace": section}}))
        self.until, self.stops = options.until, 0
        self.command = [
            *(sys.executable, "-m", "aim_lightning", "fit", "--config", config),
            *(
                "--config",
                directory / f"{name}.yaml",
                "--run",
                name,
                "--runs_root",
                directory / "runs",
                "--tokenizer",
                "null",
            ),
            *("--data.path", directory / "tokens", "--trainer.devices", options.devices),
            *(
                "--data.global_batch_size",
                options.batch,
                "--trainer.max_steps",
                options.steps,
                "--trainer.max_epochs",
                -1,
            ),
            *("--trainer.log_every_n_steps", 1, "--trainer.val_check_interval", options.steps),
            *("--trainer.check_val_every_n_epoch", "null", "--trainer.limit_val_batches", 2),
            *("--callbacks.sample_grid", "null", "--callbacks.sample_metrics", "null"),
            *("--callbacks.checkpoints.every_n_steps", options.steps // 6),
            *options.fit,
        ]

    def start(self) -> subprocess.Popen:
        path = f"{ROOT / 'benchmarks'}:{ROOT}:{os.environ.get('PYTHONPATH', '')}"
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        command = [str(word) for word in self.command]
        return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)

    def finish(self, process: subprocess.Popen | None = None) -> None:
        process = process or self.start()
        if code := self._wait(process):
            raise SystemExit(f"training ended with exit code {code}: {' '.join(map(str, self.command))}")

    def _wait(self, process: subprocess.Popen) -> int:
        """Its exit code. Raises TimeIsUp, and kills it."""
        try:
            return process.wait(self.until and max(0.0, self.until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._kill(process)
            raise TimeIsUp from None

    def _kill(self, process: subprocess.Popen) -> None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop_at(self, step: int, number: signal.Signals) -> None:
        """Start it, and send the signal once this step is done; SIGKILL goes to all its processes."""
        process = self.start()
        while not any(row["step"] >= step for row in self.rows()):
            if process.poll() is not None:
                raise SystemExit(f"training ended with exit code {process.returncode} before step {step}")
            if self.until and time.monotonic() > self.until:
                self._kill(process)
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
        """The last micro-batch of each step, as trained last."""
        return {row["step"]: row for row in self.rows()}


def finish(runs: dict[Run, subprocess.Popen | None]) -> None:
    """See them to their ends, and start those that are not running."""
    for run, process in runs.items():
        run.finish(process)


def distance(one: dict[int, dict], other: dict[int, dict]) -> dict[str, float]:
    """Relative differences of the loss, step by step, as far as both went."""
    steps = sorted(set(one) & set(other))
    if not steps:
        return {}
    apart = torch.tensor([abs(one[s]["loss"] - other[s]["loss"]) / one[s]["loss"] for s in steps])
    return {"largest": float(apart.max()), "mean": float(apart.mean())}


def rows_agree(one: dict[int, dict], other: dict[int, dict]) -> bool | None:
    """Return True if both saw the same rows at every common step; None without a common step."""
    steps = set(one) & set(other)
    return all(one[step]["rows"] == other[step]["rows"] for step in steps) if steps else None


def train(directory: Path, options: argparse.Namespace) -> tuple[list[dict[int, dict]], int]:
    """Curves of two undisturbed trainings and the interrupted one, and how often that was stopped; none outlives a
    failure of another."""
    first, second, cut = (Run(which, directory, options) for which in ("first", "second", "cut"))
    concurrent = {run: run.start() if options.together else None for run in (first, second)}
    try:
        if not options.together:
            finish(concurrent)
        for part, number in zip((0.23, 0.48, 0.76), STOPS, strict=True):
            cut.stop_at(int(options.steps * part), number)
        cut.finish()
        if options.together:
            finish(concurrent)
    except TimeIsUp:
        print("time is up: what was trained so far is compared", flush=True)
    finally:
        for process in filter(None, concurrent.values()):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return [run.curve() for run in (first, second, cut)], cut.stops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="imagenet256_aim_b", help="of 16x16 codes of 16,384, 1,000 classes")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each run, at least 12")
    parser.add_argument("--batch", type=int, default=128, help="images, all devices together")
    parser.add_argument(
        "--together", action="store_true", help="all three at the same time: sooner, three times the memory"
    )
    parser.add_argument("--seconds", type=float, help="that the trainings may take, all together (default: any)")
    parser.add_argument("fit", nargs="*", help="behind --: options of aim-lightning fit")
    options = parser.parse_args()
    options.until = options.seconds and time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for split, rows in (("train", max(20000, 4 * options.batch)), ("val", 1024)):
            (directory / "tokens" / split).mkdir(parents=True)
            simulate(directory / "tokens" / split, rows, 1)
        curves, stops = train(directory, options)
    same_rows = rows_agree(curves[0], curves[2])
    row = {
        "together": options.together,
        "devices": options.devices,
        "steps": options.steps,
        "batch": options.batch,
        "stops": stops,
    }
    row |= {"undisturbed_apart": distance(*curves[:2]), "interrupted_apart": distance(curves[0], curves[2])}
    row |= {"steps_of_interrupted": len(curves[2]), "same_rows_at_every_step": same_rows}
    print(json.dumps(row, indent=1))
    print(f"written to {save('interruptions', [row])}")


if __name__ == "__main__":
    main()
