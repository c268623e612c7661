"""The chunked scan against the step-by-step recurrence, forward and backward, in one run: seconds and memory.

python benchmarks/scan.py [--repeats 3]
"""

import argparse
import statistics
import time

import torch
from record import hardware, save

from aim_lightning.models.aim.scan import scan, scan_ref

SHAPE = {"batch": 64, "heads": 8, "channels": 32, "state": 32}
LENGTHS = (64, 256)
CASES = {"recurrence": (scan_ref,)} | {f"chunks of {size}": (scan, size) for size in (16, 32, 64, 256)}


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


def saved_bytes(function, values, *options) -> int:
    """Return the bytes kept for the backward pass; tensors that share their memory count once."""
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(*values, *options)
    return sum(storage.nbytes() for storage in kept.values())


def measure(length: int, device: str, repeats: int) -> list[dict]:
    """Return a row for each way to scan sequences of this length."""
    values, rows = inputs(length, device), []
    for name, (function, *size) in CASES.items():
        seconds(function, values, *size)
        median = statistics.median(seconds(function, values, *size) for _ in range(repeats))
        row = {"steps": length, "case": name, "seconds": round(median, 4)}
        row["times_faster"] = round((rows[0]["seconds"] if rows else row["seconds"]) / row["seconds"], 2)
        rows.append({**row, "saved_bytes": saved_bytes(function, values, *size)})
        print(
            "{steps:4d} steps  {case:14s} {seconds:8.3f} s  x{times_faster:.1f}  {saved_bytes:13,d} bytes".format(
                **rows[-1]
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{hardware()}, {torch.get_num_threads()} threads, {SHAPE}; medians of forward and backward")
    facts = {"threads": torch.get_num_threads(), **SHAPE}
    rows = [{**facts, **row} for length in LENGTHS for row in measure(length, device, options.repeats)]
    print(f"written to {save('scan', rows)}")


if __name__ == "__main__":
    main()
