"""Measure a step of the fast decoder: microseconds from the end of one kernel to the end of the next.

python benchmarks/kernels.py [--models AiM-L,AiM-XL] [--batches 64,16]
Mean over a sequence under PyTorch's profiler, which itself takes time. Kernels overlap: the sum of their durations
would count time twice. Calls of one kernel are distinguished by the kernel that ends next. Needs a GPU.
Writes benchmarks/results/kernels_HARDWARE_DATE.json.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable

import torch
from record import hardware, save
from sampling import GOALS, OPTIONS, network

from aim_lightning.sampling import generate, release_decoders

APART = 100.0  # microseconds: a longer pause is one between two graphs or calls
Event = tuple[str, float, float]  # name, start, end in microseconds


def by_kernel(events: Iterable[Event], steps: int) -> list[dict]:
    """Return launches per step and mean microseconds of each of the decoder's kernels, the costliest first."""
    times_of, ordered = defaultdict(list), sorted(events, key=lambda event: event[2])
    for (_, _, before), (name, start, end), (following, *_) in zip(ordered, ordered[1:], ordered[2:], strict=False):
        if start - before < APART:
            times_of[f"{name}, then {following}"].append(end - before)
    rows = [
        {"kernel": name, "launches_a_step": round(len(times) / steps, 2), "us": round(sum(times) / len(times), 2)}
        for name, times in times_of.items()
        if len(times) >= steps // 2  # what runs once a sequence is not of the step
    ]
    return sorted(rows, key=lambda row: -row["us"] * row["launches_a_step"])


def measure(name: str, batch: int) -> list[dict]:
    """Return the rows of one case, last the sum of a step."""
    device = torch.device("cuda")
    model, labels = network(name, device), torch.arange(batch)
    draw = lambda: generate(model, labels, decoder="fast", **OPTIONS)  # noqa: E731
    draw()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        draw()
        torch.cuda.synchronize()
    release_decoders(model)
    on_gpu = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    events = [(event.name, event.time_range.start, event.time_range.end) for event in on_gpu]
    rows = by_kernel(events, model.config.num_tokens)
    rows.append({"kernel": "step", "launches_a_step": 1, "us": sum(row["us"] * row["launches_a_step"] for row in rows)})
    return [{"model": name, "batch": batch, **row} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help="presets, with commas (default: those of the goals)")
    parser.add_argument("--batches", help="images, one for each model")
    options, cases, records = parser.parse_args(), list(GOALS), []
    if options.models:
        cases = list(zip(options.models.split(","), map(int, options.batches.split(",")), strict=True))
    print(hardware(), flush=True)
    for case in cases:
        for row in measure(*case):
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            records.append(row)
        path = save("kernels", records)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
