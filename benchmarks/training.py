"""Training steps of the presets on each backend: images/s, TFLOP/s, memory and time on the host, in one run.

python benchmarks/training.py [--models AiM-B] [--batches 64,256] [--backends triton,mamba_ssm] [--steps 8] [--profile]
A step is forward, backward, clipping and fused AdamW in bf16 autocast on random codes. Ratios are to mamba_ssm in
eager mode, which runs the published kernels. --profile also lists the time of each kernel. Needs an NVIDIA GPU.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable

import torch
from record import hardware, save
from torch.profiler import ProfilerActivity, profile

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.models.aim.backends.choose import missing

WARM_UP = 3


def training_step(model: str, backend: str, batch: int) -> tuple[AiM, Callable[[], float]]:
    """Return a network and a function that trains one step and gives the seconds that the host spent on it."""
    network = AiM(AiMConfig.preset(model), backend=backend).cuda()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, betas=(0.9, 0.95), fused=True)
    codes, labels = torch.randint(16384, (batch, 256)).cuda(), torch.randint(1000, (batch,)).cuda()

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = network.loss(codes, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    return network, step


def measure(model: str, backend: str, batch: int, steps: int, profiled: bool) -> dict:
    """Time some steps after a warm-up that compiles and tunes kernels."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    network, step = training_step(model, backend, batch)
    for _ in range(WARM_UP):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    host = [step() for _ in range(steps)]
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / steps
    row = {"model": model, "backend": backend, "batch": batch, "images_per_s": round(batch / seconds, 1)}
    row |= {"milliseconds": round(seconds * 1e3, 2), "host_milliseconds": round(statistics.median(host) * 1e3, 2)}
    row["tflops"] = round(batch * network.flops_per_image() / seconds / 1e12, 1)
    row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    return row | ({"kernels": kernels(step)} if profiled else {})


def kernels(step: Callable[[], float], steps: int = 2, most: int = 25) -> list[dict]:
    """Return the most expensive kernels of a step."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    events = sorted(trace.key_averages(), key=lambda event: -event.self_device_time_total)[:most]
    return [
        {
            "name": event.key[:100],
            "launches": event.count / steps,
            "milliseconds": round(event.self_device_time_total / steps / 1e3, 3),
        }
        for event in events
    ]


def main() -> None:
    """Measure all combinations and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="AiM-B", help="presets, separated by commas")
    parser.add_argument("--batches", default="64,256", help="images per step")
    parser.add_argument("--backends", default="triton" + ("" if missing() else ",mamba_ssm"))
    parser.add_argument("--steps", type=int, default=8, help="timed steps")
    parser.add_argument("--profile", action="store_true", help="list the time of each kernel")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: this benchmark needs an NVIDIA GPU")
    rows = []
    for model in options.models.split(","):
        for batch in map(int, options.batches.split(",")):
            for backend in options.backends.split(","):
                try:
                    rows.append(measure(model, backend, batch, options.steps, options.profile))
                except torch.cuda.OutOfMemoryError:
                    rows.append({"model": model, "backend": backend, "batch": batch, "out_of_memory": True})
                print({name: value for name, value in rows[-1].items() if name != "kernels"}, flush=True)
    published = {(r["model"], r["batch"]): r.get("images_per_s") for r in rows if r["backend"] == "mamba_ssm"}
    for row in rows:
        if "images_per_s" in row and published.get((row["model"], row["batch"])):
            row["ratio_to_mamba_ssm"] = round(row["images_per_s"] / published[row["model"], row["batch"]], 2)
    print(f"{hardware()}; written to {save('training', rows)}")


if __name__ == "__main__":
    main()
