"""The chunked scan against the step-by-step recurrence, forward and backward, in one run.

python benchmarks/scan.py [--repeats 3]
"""

import argparse
import statistics
import time

import torch

from aim_lightning.models.aim.scan import scan, scan_ref

SHAPE = {"batch": 64, "heads": 8, "channels": 32, "state": 32}


def inputs(length: int, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch, heads, channels, state = SHAPE.values()
    values = [
        torch.randn(batch, length, heads, channels, generator=generator),
        0.1 * torch.rand(batch, length, heads, generator=generator),
        -1 - 15 * torch.rand(heads, generator=generator),
        torch.randn(batch, length, state, generator=generator),
        torch.randn(batch, length, state, generator=generator),
    ]
    return [value.to(device).requires_grad_() for value in values]


def seconds(function, values, *options) -> float:
    start = time.perf_counter()
    function(*values, *options).sum().backward()
    if values[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{device}, {torch.get_num_threads()} threads, {SHAPE}; seconds forward and backward, medians")
    for length in (64, 256):
        values = inputs(length, device)
        cases = {"recurrence": (scan_ref,)} | {f"chunks of {size}": (scan, size) for size in (16, 32, 64, 256)}
        medians = {}
        for name, (function, *size) in cases.items():
            seconds(function, values, *size)
            medians[name] = statistics.median(seconds(function, values, *size) for _ in range(options.repeats))
            print(f"{length:4d} steps  {name:14s} {medians[name]:8.3f}  x{medians['recurrence'] / medians[name]:.1f}")


if __name__ == "__main__":
    main()
