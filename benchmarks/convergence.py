"""Compare the losses of AiM-B on real codes between training backends and the spread of seeds.

python benchmarks/convergence.py --tokens DIRECTORY [--backends triton,mamba_ssm,torch] [--seeds 3] [--steps 2000]
    [--seconds 300] [--batch 32] [-- OPTIONS OF FIT]
python benchmarks/convergence.py --plot RECORD

Every run is a process of `aim-lightning fit`. The first backend trains with several seeds, the others with seed 0 only.
A seed fixes weights, order of the data and label dropout, so runs of one seed differ only in rounding. Backend torch
computes in float32, the others in bf16 autocast. All processes start together: torch has the first GPU, the others
share the rest. Processes are stopped after --seconds. Two runs are compared over the steps that both completed: the
loss is the mean of the last tenth of them. It is within the spread if it differs from that of the first backend's
seed 0 by at most the range of its seeds.
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

import torch
from matplotlib.figure import Figure
from record import save
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import ROOT, words

from aim_lightning.data.tokens.format.manifest import TokenManifest

LEARNING_RATE = 3e-4
POINTS = 100  # of the smoothed curve of a complete run
STOPPING = 60  # seconds that a stopped process has until it is killed


def write_config(path: Path, run: dict, options: argparse.Namespace) -> None:
    """Write the options of a run as a configuration on top of the experiment of AiM-B."""
    data = TokenManifest.load(options.tokens / "train")
    network = {"vocab_size": data.codebook_size, "num_tokens": data.num_tokens, "num_classes": len(data.class_names)}
    # The schedule must not depend on the number of steps, which the time may limit.
    optimizer = {"base_learning_rate": LEARNING_RATE * 256 / options.batch, "warmup_steps": 100, "schedule": "constant"}
    unused = dict.fromkeys(("ema", "sample_grid", "sample_metrics", "throughput", "checkpoints"))
    sizes = {"global_batch_size": options.batch, "max_device_batch_size": options.batch}
    values = {
        "callbacks": unused,
        "data": {"init_args": {"path": str(options.tokens.resolve()), **sizes}},
        "experiment": "convergence",
        "model": {"init_args": {"backend": run["backend"], "network": network, "optimizer": optimizer}},
        "run": run["name"],
        "runs_root": str(path.parent),
        "seed_everything": run["seed"],
        "tokenizer": None,
        "trainer": {
            "devices": 1,
            "limit_val_batches": 0,
            "log_every_n_steps": 1,
            "max_epochs": -1,
            "max_steps": options.steps,
            "precision": run["precision"],
        },
    }
    path.write_text(json.dumps(values))


def start(run: dict, directory: Path, gpu: int, options: argparse.Namespace) -> subprocess.Popen:
    """Start a training on one GPU; its output goes to a file in the directory."""
    config = directory / f"{run['name']}.yaml"
    write_config(config, run, options)
    experiment = ROOT / "experiments/imagenet256_aim_b.yaml"
    command = [sys.executable, "-m", "aim_lightning", "fit", "--config", str(experiment), "--config", str(config)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu)}
    with config.with_suffix(".log").open("w") as log:
        return subprocess.Popen([*command, *options.fit_options], env=environment, stdout=log, stderr=log, cwd=ROOT)


def train(runs: list[dict], directory: Path, options: argparse.Namespace) -> None:
    """Train all runs concurrently until they finish or the time is over, and add their losses and exit codes."""
    gpus = torch.cuda.device_count()
    processes = []
    for number, run in enumerate(runs):
        gpu = 0 if run["backend"] == "torch" or gpus < 2 else 1 + number % (gpus - 1)
        processes.append(start(run, directory, gpu, options))
    deadline = time.monotonic() + options.seconds
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(1)
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for run, process in zip(runs, processes, strict=True):
        try:
            run["exit_code"] = process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            process.kill()
            run["exit_code"] = process.wait()
        run["losses"] = read_losses(directory / "convergence" / run["name"])
        if run["exit_code"] not in (0, 128 + signal.SIGTERM):
            log = (directory / f"{run['name']}.log").read_text()
            print(f"{run['name']} exited with {run['exit_code']}:\n{log[-2000:]}", file=sys.stderr)


def read_losses(run: Path) -> list[float]:
    """Return the training loss of each step; none if the run did not start."""
    if not run.exists():
        return []
    events = EventAccumulator(str(run), {"scalars": 0}).Reload()
    logged = "train/loss" in events.Tags()["scalars"]
    return [event.value for event in events.Scalars("train/loss")] if logged else []


def final_loss(run: dict, steps: int) -> float:
    """Return the mean loss of the last tenth of the first steps."""
    return statistics.mean(run["losses"][steps - max(steps // 10, 1) : steps])


def compare(runs: list[dict]) -> None:
    """Add to each run its loss and the seeds' losses at the same step, and whether the difference is within them."""
    seeds = [run for run in runs if run["backend"] == runs[0]["backend"]]
    for run in runs:
        if not (steps := min(len(other["losses"]) for other in (run, *seeds))):
            continue
        references = [final_loss(seed, steps) for seed in seeds]
        loss, spread = final_loss(run, steps), max(references) - min(references)
        row = {"steps": steps, "loss": loss, "first_loss": run["losses"][0], "loss_of_seeds": references}
        row |= {"mean": statistics.mean(references), "spread": spread}
        if run not in seeds:
            row |= {"difference": loss - references[0], "within_spread": abs(loss - references[0]) <= spread}
        run |= row


def curve(losses: list[float], size: int) -> list[tuple[int, float]]:
    """Return the last step of each group of `size` steps and the mean loss of the group."""
    groups = [(stop, losses[stop - size : stop]) for stop in range(size, len(losses) + 1, size)]
    return [(stop, round(statistics.mean(group), 5)) for stop, group in groups]


def plot(record: Path) -> Path:
    """Draw the curves of a record: whole, and relative to the first run over the common steps."""
    rows = json.loads(record.read_text())["rows"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    whole, relative = figure.subplots(1, 2)
    for row in rows:
        steps, losses = zip(*row["curve"], strict=True) if row["curve"] else ((), ())
        label = f"{row['backend']} {row['precision']}, seed {row['seed']}"
        whole.plot(steps, losses, label=label, linewidth=1)
        first = dict(map(tuple, rows[0]["curve"]))
        pairs = [(step, loss - first[step]) for step, loss in row["curve"] if step in first]
        relative.plot(*zip(*pairs, strict=True) if pairs else ((), ()), label=label, linewidth=1)
    whole.set(xlabel="step", ylabel="train/loss, nats per code")
    relative.set(xlabel="step", ylabel="difference from the first run", ylim=(-0.1, 0.1))
    whole.legend(fontsize=7)
    figure.savefig(path := record.with_suffix(".png"), dpi=120)
    return path


def main() -> None:
    """Train, compare, and write the record and its plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=Path, help="token shards of real images")
    parser.add_argument("--backends", type=words, default="triton,mamba_ssm,torch", help="the first one has all seeds")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the first backend")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=300, help="time limit of all processes, with their start")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--plot", type=Path, metavar="RECORD", help="only draw the curves of a record")
    parser.add_argument("fit_options", nargs="*", help="after --: options of aim-lightning fit")
    options = parser.parse_args()
    if options.plot:
        print(plot(options.plot))
        return
    if not options.tokens:
        parser.error("--tokens is missing")
    pairs = [(options.backends[0], seed) for seed in range(options.seeds)]
    pairs += [(backend, 0) for backend in options.backends[1:]]
    precisions = [("32-true" if backend == "torch" else "bf16-mixed") for backend, _ in pairs]
    runs = [
        {"name": f"{backend}-{seed}", "backend": backend, "seed": seed, "precision": precision}
        for (backend, seed), precision in zip(pairs, precisions, strict=True)
    ]
    with tempfile.TemporaryDirectory() as name:
        train(runs, Path(name), options)
    compare(runs)
    data = TokenManifest.load(options.tokens / "train")
    facts = {"images": data.rows, "grid": data.grid, "codebook_size": data.codebook_size, "batch": options.batch}
    facts |= {"learning_rate": LEARNING_RATE, "tokenizer_hash": data.tokenizer_hash}
    for run in runs:
        losses = run.pop("losses")
        run |= facts | {"completed_steps": len(losses), "curve": curve(losses, max(options.steps // POINTS, 1))}
        print({name: value for name, value in run.items() if name != "curve"})
    path = save("convergence", runs)
    print(f"written to {path} and {plot(path)}")


if __name__ == "__main__":
    main()
