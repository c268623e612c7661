"""A training step of the presets on each backend: images/s, memory, and the first step's cost, in one run.

python benchmarks/backends.py [--models AiM-B,AiM-L] [--batches 64,32] [--steps 10]
"""

import argparse
import gc
import statistics
import time

import torch
from record import hardware, save
from torch.nn import functional as F

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.models.aim.backends.choose import missing


def measure(model: str, backend: str, batch: int, steps: int) -> dict:
    """Measure forward, backward and fused AdamW in bf16 autocast on random codes."""
    torch.cuda.reset_peak_memory_stats()
    network = AiM(AiMConfig.preset(model), backend=backend).cuda()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, betas=(0.9, 0.95), fused=True)
    codes, labels = torch.randint(16384, (batch, 256)).cuda(), torch.randint(1000, (batch,)).cuda()

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = F.cross_entropy(network(codes[:, :-1], labels).flatten(0, 1), codes.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    first = step()
    step()
    seconds = statistics.median(step() for _ in range(steps))
    return {
        "model": model,
        "backend": backend,
        "batch": batch,
        "images_per_second": round(batch / seconds, 1),
        "tflops": round(batch * network.flops_per_image() / seconds / 1e12, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "first_step_seconds": round(first, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="AiM-B", help="presets, with commas")
    parser.add_argument("--batches", default="64", help="images a step, one for each model")
    parser.add_argument("--steps", type=int, default=10, help="steps behind each median")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: this benchmark needs an NVIDIA GPU")
    backends = ["torch"] + ([] if missing() else ["mamba_ssm"])
    rows = []
    for model, batch in zip(options.models.split(","), map(int, options.batches.split(",")), strict=True):
        for backend in backends:
            gc.collect()
            torch.cuda.empty_cache()
            try:
                rows.append(measure(model, backend, batch, options.steps))
            except torch.cuda.OutOfMemoryError:
                rows.append({"model": model, "backend": backend, "batch": batch, "out_of_memory": True})
            print(rows[-1], flush=True)
    print(f"{hardware()}; {missing() or 'mamba-ssm kernels usable'}; written to {save('backends', rows)}")


if __name__ == "__main__":
    main()
