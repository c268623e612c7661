"""Finds the shapes of the fast decoder's kernels: one field after the other, by the time of whole sequences.

python benchmarks/tune_sampling.py [--models AiM-B,AiM-L] [--batches 16,16] [--seconds 300]
Writes what is better than before into aim_lightning/sampling/fast/shapes.json. Needs a GPU; first each case compiles in
a process of its own, since that takes most of the time.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import torch
from sampling import GOALS, OPTIONS, network, timed

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.sampling import generate, release_decoders
from aim_lightning.sampling.fast import shapes
from aim_lightning.sampling.fast.shapes import Mix, Product, Shapes, shapes_for

PATH = Path(shapes.__file__).with_name("shapes.json")
GAIN = 0.995  # what counts as better
Case = tuple[str, int]


def candidates(rows: int) -> Iterator[dict]:
    """Changes of one kind of kernel each, those that promise most first."""
    tall = min(64, max(16, rows))
    yield from ({"mix": Mix(*values)} for values in MIXES[min(MIXES, key=lambda known: abs(known - rows))])
    yield from ({"project": Product(tall, *values, 4)} for values in PROJECTS)
    for split, wide, deep, stages in OUTS:
        yield {"split": split, "out": Product(tall, wide, deep, stages, 4)}
    yield from ({"ahead": ahead} for ahead in (0, 64, 256))


SUMS, PRODUCTS = (0, False), (0, True)  # most registers (any number), products
MIXES = {
    2: [(1, 128, 3, 8, *SUMS), (1, 64, 3, 4, *SUMS), (1, 32, 4, 4, *PRODUCTS), (1, 32, 6, 4, *PRODUCTS)],
    32: [
        *((2, 32, 3, 4, *SUMS), (2, 16, 3, 2, *SUMS), (4, 16, 3, 4, *SUMS), (4, 8, 3, 2, *SUMS)),
        *((2, 32, 3, 4, *PRODUCTS), (4, 32, 3, 4, *PRODUCTS), (4, 64, 2, 8, *PRODUCTS), (4, 32, 4, 4, *PRODUCTS)),
    ],
    128: [
        *((4, 8, 3, 2, *SUMS), (8, 8, 3, 2, *SUMS), (2, 8, 3, 1, *SUMS)),
        *((8, 16, 3, 4, 168, True), (8, 16, 4, 4, 168, True), (8, 16, 3, 4, 128, True)),
    ],
}
PROJECTS = [(32, 256, 4), (32, 256, 3), (64, 128, 4), (64, 128, 5), (64, 256, 3), (32, 128, 4)]
OUTS = [(4, 16, 128, 4), (4, 32, 128, 4), (4, 32, 128, 5), (3, 32, 256, 3), (2, 16, 256, 4), (4, 32, 256, 3)]


def seconds(model: AiM, batch: int, wanted: Shapes, repeats: int = 3) -> float:
    """Of a sequence in these shapes; infinite where the GPU cannot run them."""
    device = torch.device("cuda")
    with mock.patch.object(shapes, "table", lambda: {(model.config.d_model, 2 * batch): wanted}):
        try:
            draw = lambda: generate(model, torch.arange(batch), decoder="fast", **OPTIONS)  # noqa: E731
            return statistics.median(timed(draw, device, repeats))
        except Exception as error:  # too much shared memory, say: another candidate will do
            print(f"  {type(error).__name__}: {str(error).splitlines()[0][:100]}", flush=True)
            return float("inf")
        finally:
            release_decoders(model)


def compile_all(case: Case) -> None:
    """Runs every candidate once, for Triton's cache."""
    model = network(case[0], torch.device("cuda"))
    found = shapes_for(model.config, 2 * case[1], torch.bfloat16)
    for change in candidates(2 * case[1]):
        seconds(model, case[1], replace(found, **change), repeats=1)


def tune(case: Case, until: float) -> tuple[Shapes, float, bool]:
    """The best shapes, their time, and whether they are others than before."""
    model, batch = network(case[0], torch.device("cuda")), case[1]
    found = shapes_for(model.config, 2 * batch, torch.bfloat16)
    before, best = found, seconds(model, batch, found)
    print(f"{case}: {best:.4f} s as it is", flush=True)
    for change in candidates(2 * batch):
        if time.monotonic() > until or all(getattr(found, name) == value for name, value in change.items()):
            continue
        took = seconds(model, batch, replace(found, **change))
        better = took < best * GAIN
        print(f"{case}: {took:.4f} s {change}{' *' if better else ''}", flush=True)
        if better:
            found, best = replace(found, **change), took
    return found, best, found != before


def store(key: str, found: Shapes) -> None:
    """Into the table; a value is a line of it."""
    table = json.loads(PATH.read_text())
    row = {name: list(value.values()) if isinstance(value, dict) else value for name, value in asdict(found).items()}
    table[key] = row
    PATH.write_text("{\n" + ",\n".join(f' "{name}": {json.dumps(value)}' for name, value in table.items()) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help="presets, with commas (default: those of the goals)")
    parser.add_argument("--batches", help="images, one for each model")
    parser.add_argument("--seconds", type=float, default=300, help="time for all of it")
    options = parser.parse_args()
    until, cases = time.monotonic() + options.seconds, list(GOALS)
    if bool(options.models) != bool(options.batches):
        parser.error("--models and --batches belong together")
    if options.models:
        cases = list(zip(options.models.split(","), map(int, options.batches.split(",")), strict=True))
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=compile_all, args=(case,)) for case in cases]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0, (until - time.monotonic()) / len(workers)))
        worker.kill()
    for done, case in enumerate(cases):
        now = time.monotonic()
        found, best, better = tune(case, now + max(0, until - now) / (len(cases) - done))
        if better:
            store(f"{AiMConfig.preset(case[0]).d_model}x{2 * case[1]}", found)
        print(f"{case}: {best:.4f} s with {found}", flush=True)
    print(f"written to {PATH}; next: python benchmarks/sampling.py")


if __name__ == "__main__":
    main()
