"""Measure training of the presets on each backend, kernels alone and inside `fit`, in one run.

python benchmarks/training.py [--models AiM-B] [--batches 64,256] [--backends triton,mamba_ssm] [--steps 8]
    [--num_tokens 256] [--fit 64,256,shipped] [--fit_models AiM-B] [--fit_backends triton] [--fit_steps 50]
    [--checkpointing none] [--memory 40] [--profile] [-- OPTIONS OF FIT]

Kernels alone: forward, backward, clipping and fused AdamW in bf16 autocast on random codes. `--batches ''` skips them.
Inside fit: experiments/imagenet256_aim_*.yaml on simulated token shards, without samples and validation. A number is
the micro-batch and the global batch; `shipped` keeps both batches of the experiment; `auto` is a global batch of 256
in the micro-batches that the experiment chooses by memory. `--fit ''` skips this part.
--memory limits PyTorch to this many GB of the GPU. Rows name it, gradient checkpointing and other options of fit.
Every row has images/s, TFLOP/s, MFU, peak memory, milliseconds per micro-batch and those that the host needs for one.
mfu is the share of the data sheet's peak, of_products that of the bf16 matrix products measured in the same run.
Ratios are to mamba_ssm in eager mode, which runs the published kernels, and to the kernels alone. mamba_ssm's first
call autotunes for a minute or more; without it in --backends there is no ratio to it. Rows inside fit on an H100 or
H200 also have the images/s of the published code (H200), of the goal and of the stretch goal. --profile also lists the
time of each kernel. Needs an NVIDIA GPU.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from kernel_bytes import compare, print_kernels
from lightning.pytorch import Callback
from record import hardware, save
from tokens import simulate
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

from aim_lightning.callbacks.logging.throughput import peak_tflops
from aim_lightning.cli.commands.profile import kernel_table
from aim_lightning.cli.main import main as aim_lightning
from aim_lightning.models import AiM, AiMConfig, AutoregressiveNetwork
from aim_lightning.models.aim.backends.choose import missing

ROOT = Path(__file__).parents[1]
WARM_UP = 3
FIT_WARM_UP = 10  # steps until allocator, loader and the steps in flight are in their steady state
FEW_WARM_UP = 3  # the same for steps of many micro-batches
AUTO_BATCH = 256  # global batch of `auto`
HOST_STEPS = 5  # steps with a synchronisation before each: the host meets an empty queue and waits for nothing
COLUMNS = ("part", "model", "backend", "batch", "global_batch", "num_tokens", "gradient_checkpointing")
COLUMNS += ("images_per_s", "milliseconds", "host_milliseconds", "tflops", "mfu", "of_products", "peak_gib")
COLUMNS += ("ratio_to_mamba_ssm", "ratio_to_kernels")
GOAL_COLUMNS = ("published_images_per_s", "goal_images_per_s", "stretch_images_per_s")
COLUMNS += GOAL_COLUMNS
PUBLISHED = {("AiM-B", 64): 397, ("AiM-B", 128): 632}  # images/s of the published code on an H200 (docs/training.md)
# Images/s inside fit on an H200: goal and stretch goal.
GOALS = {
    ("AiM-B", 64): (1500, 1800),
    ("AiM-B", 256): (1700, 2000),
    ("AiM-L", 64): (550, 660),
    ("AiM-L", 256): (600, 700),
    ("AiM-XL", 64): (300, 350),
    ("AiM-XL", 256): (320, 370),
    ("AiM-1B", 64): (185, 215),
    ("AiM-1B", 256): (200, 230),
}
H100 = 0.83  # goals of an H100 relative to an H200: the estimate of docs/imagenet.md
COPIED = 2**30  # bytes of the measured copies
PRODUCTS = 8192  # rows and columns of the measured matrix products


def training_step(network: AutoregressiveNetwork, batch: int) -> Callable[[], float]:
    """Return a function that trains one step and gives the seconds that the host spent on it."""
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, betas=(0.9, 0.95), fused=True)
    config, device = network.config, network.lm_head.weight.device
    codes = torch.randint(config.vocab_size, (batch, config.num_tokens)).to(device)
    labels = torch.randint(config.num_classes, (batch,)).to(device)

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = network.loss(codes, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    return step


def time_steps(network: AutoregressiveNetwork, step: Callable[[], float], batch: int, steps: int) -> dict:
    """Time some steps after a warm-up that compiles and tunes kernels."""
    synchronize = torch.cuda.synchronize if network.lm_head.weight.is_cuda else lambda: None
    for _ in range(WARM_UP):
        step()
    synchronize()
    start = time.perf_counter()
    host = [step() for _ in range(steps)]
    synchronize()
    seconds = (time.perf_counter() - start) / steps
    return figures(batch, seconds, statistics.median(host), network.flops_per_image())


def measure(model: str, backend: str, batch: int, steps: int, num_tokens: int, rates: dict | None) -> dict:
    """Time training of a preset on random codes; `rates` of the GPU for a table of its kernels, or None."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    network = AiM(AiMConfig.preset(model, num_tokens=num_tokens), backend=backend).cuda()
    step = training_step(network, batch)
    row = time_steps(network, step, batch, steps)
    if rates:
        row |= {name: round(rate, 2) for name, rate in rates.items()}
        row["kernels"] = compare(kernels(step), network.config, batch, **rates)
    return row


def figures(batch: int, seconds: float, host: float, flops: float) -> dict:
    """Return the measured values of one micro-batch.

    Args:
        batch: images.
        seconds: of the device.
        host: seconds that the host needs to launch it.
        flops: of one image.
    """
    tflops = batch * flops / seconds / 1e12
    row = {"batch": batch, "images_per_s": round(batch / seconds, 1), "milliseconds": round(seconds * 1e3, 2)}
    row |= {"host_milliseconds": round(host * 1e3, 2), "tflops": round(tflops, 1)}
    if peak := peak_tflops(hardware()):
        row["mfu"] = round(tflops / peak, 3)
    return row | {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1)}


class Clock(Callback):
    """Callback that times `steps` optimizer steps between two synchronisations and writes them to `path` as JSON."""

    def __init__(self, path: str, warm_up: int, steps: int) -> None:
        self.path, self.first, self.last = Path(path), warm_up, warm_up + steps
        self.synchronised: list[float] = []
        self.host: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        plan, step = trainer.datamodule.plan, trainer.global_step
        if (batch_idx + 1) % plan.accumulate or (step != self.first and step < self.last):
            return
        if step > self.last:
            self.host.append((time.perf_counter() - self.synchronised[-1]) / plan.accumulate)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.synchronised.append(time.perf_counter())
        if len(self.host) == HOST_STEPS:
            seconds = (self.synchronised[1] - self.synchronised[0]) / (self.last - self.first) / plan.accumulate
            flops = module.network.flops_per_image()
            row = figures(plan.micro_batch_size, seconds, statistics.median(self.host), flops)
            row |= {"global_batch": trainer.datamodule.global_batch_size, "timed_steps": self.last - self.first}
            self.path.write_text(json.dumps(row))
            print(row, flush=True)  # kept in the log if the command is cut at the end of `fit`


def measure_fit(model: str, backend: str, batch: int | str, checkpointing: str, steps: int, options: list[str]) -> dict:
    """Time `aim-lightning fit` with the shipped configuration of a preset, and return its row.

    Args:
        model: preset with an ImageNet experiment.
        backend: of the network.
        batch: images per step and micro-batch, `shipped` or `auto`.
        checkpointing: `model.gradient_checkpointing`.
        steps: timed steps, a quarter of them for `shipped` and `auto`.
        options: further ones of `aim-lightning fit`.
    """
    sizes = {"shipped": {}, "auto": {"global_batch_size": AUTO_BATCH, "max_device_batch_size": "auto"}}
    sizes = sizes.get(batch, {"global_batch_size": batch, "max_device_batch_size": batch})
    warm_up, steps = (FIT_WARM_UP, steps) if isinstance(batch, int) else (FEW_WARM_UP, max(steps // 4, 1))
    last = warm_up + steps + HOST_STEPS
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for split, rows in (("train", (last + 1) * sizes.get("global_batch_size", 2048)), ("val", 64)):
            (directory / "tokens" / split).mkdir(parents=True)
            simulate(directory / "tokens" / split, rows, 1)  # more than one epoch would restart the loader
        clock = {"path": str(directory / "clock.json"), "warm_up": warm_up, "steps": steps}
        values = {
            "callbacks": {
                "clock": {"class_path": "training.Clock", "init_args": clock},
                "sample_grid": None,
                "sample_metrics": None,
                "checkpoints": None,
            },
            "data": {"init_args": {"path": str(directory / "tokens"), **sizes}},
            "model": {"init_args": {"backend": backend, "gradient_checkpointing": checkpointing}},
            "runs_root": str(directory / "runs"),
            "tokenizer": None,
            "trainer": {"devices": 1, "max_steps": last, "max_epochs": -1, "limit_val_batches": 0},
        }
        (directory / "fit.yaml").write_text(json.dumps(values))
        experiment = ROOT / f"experiments/imagenet256_{model.lower().replace('-', '_')}.yaml"
        code = aim_lightning(["fit", "--config", str(experiment), "--config", str(directory / "fit.yaml"), *options])
        row = json.loads((directory / "clock.json").read_text()) if code == 0 else {"exit_code": code}
    return row | ({"options": options} if options else {})


def kernels(step: Callable[[], float], steps: int = 2) -> list[dict]:
    """Return all kernels of a step, the most expensive first."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    table, _ = kernel_table(trace, steps, "cuda", limit=None)
    return [
        {"name": short(name), "launches": launches, "milliseconds": round(milliseconds, 3)}
        for name, launches, milliseconds, _ in table
    ]


def short(name: str) -> str:
    """Return the first 100 characters of a kernel's name without PyTorch's namespaces."""
    return name.replace("at::native::", "").replace("(anonymous namespace)::", "")[:100]


def add_ratios(rows: list[dict]) -> None:
    """Add to each row its speed relative to mamba_ssm's kernels and, inside fit, to its own kernels alone."""
    kernels_alone = [row for row in rows if row["part"] == "kernels"]
    alone = {(row["model"], row["backend"], row["batch"], row.get("num_tokens", 256)): row for row in kernels_alone}
    for row in rows:
        for name, backend in (("ratio_to_mamba_ssm", "mamba_ssm"), ("ratio_to_kernels", row["backend"])):
            reference = alone.get((row["model"], backend, row.get("batch"), row.get("num_tokens", 256)), {})
            if "images_per_s" in row and "images_per_s" in reference and reference is not row:
                row[name] = round(row["images_per_s"] / reference["images_per_s"], 3)


def product_rate(device: torch.device, size: int = PRODUCTS, repeats: int = 20) -> float:
    """Measure the TFLOP/s of square matrix products in bf16."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = Timer("a @ b", globals={"a": a, "b": b}).timeit(repeats).mean
    return 2 * size**3 / seconds / 1e12


def copy_rate(device: torch.device, repeats: int = 20) -> float:
    """Measure the TB/s, read and written, of copies within the GPU's memory."""
    source = torch.empty(COPIED, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = Timer("target.copy_(source)", globals={"source": source, "target": target}).timeit(repeats).mean
    return 2 * COPIED / seconds / 1e12


def add_goals(rows: list[dict], rate: float, machine: str) -> None:
    """Add to each row its share of the measured products and, inside fit, the published code's speed and the goals."""
    factor = next((factor for name, factor in (("H200", 1), ("H100", H100)) if name in machine), None)
    for row in rows:
        if "tflops" in row:
            row["of_products"] = round(row["tflops"] / rate, 3)
        if row["part"] == "fit" and factor:
            case = row["model"], row.get("batch")
            if factor == 1 and case in PUBLISHED:
                row["published_images_per_s"] = PUBLISHED[case]
            if case in GOALS:
                row["goal_images_per_s"], row["stretch_images_per_s"] = (round(goal * factor) for goal in GOALS[case])


def words(text: str) -> list[str]:
    """Split a list of an option."""
    return [word for word in text.split(",") if word]


def limit_memory(gigabytes: float | None) -> None:
    """Limit PyTorch's memory on the GPU, in GB of 10^9 bytes; None leaves it all."""
    if gigabytes:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(gigabytes * 1e9 / total)


def parts(options: argparse.Namespace) -> list[tuple]:
    """Return part, model, batch, backend, and number of codes or gradient checkpointing of each row."""
    batches = [int(batch) if batch.isdigit() else batch for batch in options.fit]
    lengths = list(map(int, options.num_tokens))
    alone = product(["kernels"], options.models, map(int, options.batches), options.backends, lengths)
    fit = product(["fit"], options.fit_models, batches, options.fit_backends, options.checkpointing)
    return [*alone, *fit]


def main() -> None:
    """Measure all combinations and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    backends = "triton" + ("" if missing() else ",mamba_ssm")
    parser.add_argument("--models", type=words, default="AiM-B", help="presets, separated by commas")
    parser.add_argument("--batches", type=words, default="64,256", help="images per step of the kernels alone")
    parser.add_argument("--backends", type=words, default=backends)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of the kernels alone")
    parser.add_argument("--num_tokens", type=words, default="256", help="codes of an image, for the kernels alone")
    parser.add_argument("--fit", type=words, default="64,256,shipped", help="micro-batches inside fit, shipped or auto")
    parser.add_argument("--fit_models", type=words, default="AiM-B")
    parser.add_argument("--fit_backends", type=words, default="triton")
    parser.add_argument("--fit_steps", type=int, default=50, help="timed steps inside fit; a quarter of a large one")
    parser.add_argument("--checkpointing", type=words, default="none", help="inside fit: none, blocks, all")
    parser.add_argument("--memory", type=float, help="limit of PyTorch's memory, GB")
    parser.add_argument("--profile", action="store_true", help="list time, bytes and plan of each kernel")
    parser.add_argument("fit_options", nargs="*", help="after --: options of aim-lightning fit")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: this benchmark needs an NVIDIA GPU")
    limit_memory(options.memory)
    rates = {"products_tflops": product_rate(torch.device("cuda")), "copy_tb_per_s": copy_rate(torch.device("cuda"))}
    print(hardware(), rates, flush=True)
    rows = []
    for part, model, batch, backend, variant in parts(options):
        row = {"part": part, "model": model, "backend": backend, "batch": batch}
        row |= {"memory_gb": options.memory} if options.memory else {}
        row["num_tokens" if part == "kernels" else "gradient_checkpointing"] = variant
        try:
            if part == "kernels":
                row |= measure(model, backend, batch, options.steps, variant, rates if options.profile else None)
            else:
                row |= measure_fit(model, backend, batch, variant, options.fit_steps, options.fit_options)
        except torch.cuda.OutOfMemoryError:
            row["out_of_memory"] = True
        rows.append(row)
        print({name: value for name, value in row.items() if name != "kernels"}, flush=True)
        print_kernels(row.get("kernels", []))
        add_ratios(rows)
        add_goals(rows, rates["products_tflops"], hardware())
        path = save("training", rows)  # after each row, so that a run that is cut short keeps the others
    for row in [{name: name for name in COLUMNS}, *rows]:
        print("  ".join(f"{row.get(name, '-')!s:>{max(len(name), 9)}}" for name in COLUMNS))
    print(f"{hardware()}; written to {path}")


if __name__ == "__main__":
    main()
