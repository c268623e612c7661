"""Search tiles, warps, stages and register limits of the training kernels, each timed alone.

python benchmarks/tune_training.py [--cases AiM-B:64,AiM-L:64] [--kernels scan_forward,scan_backward] [--near]
    [--workers 14]

A candidate replaces a row of TILING (aim_lightning/models/aim/fused/tiling.py) during a real training step of three
layers in bf16. The step must give the same loss and gradient norm up to rounding. Then the kernel's largest call is
timed with the arguments of that step. Other processes compile all candidates first. The best rows are printed for
comparison with the current ones; nothing is changed. --near leaves out values that were far from the best on an H200,
and the kernels whose arguments are those of AiM-B with 64 images in every case. Needs an NVIDIA GPU.
"""

import argparse
import multiprocessing
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from unittest import mock

import torch
import triton
from record import hardware, save
from training import words

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.models.aim.fused import loss, mixer, norm
from aim_lightning.models.aim.fused.launch import launch
from aim_lightning.models.aim.fused.tiling import TILING

REGISTERS = (None, 96, 104, 112, 120, 128, 168)
ELEMENTWISE = {"ROWS": (2, 4, 8, 16, 32), "COLUMNS": (64, 128, 256, 512), "num_warps": (1, 2, 4, 8)}
# Values of each field. A kernel's candidates are all their combinations that `allowed` accepts.
CANDIDATES: dict[str, dict[str, tuple]] = {
    "norm_forward": {"ROWS": (1, 2, 4, 8), "num_warps": (1, 2, 4, 8)},
    "norm_backward": {"ROWS": (1, 2, 4), "num_warps": (1, 2, 4, 8)},
    "convolution_forward": ELEMENTWISE,
    "scores_forward": {"num_warps": (4, 8), "num_stages": (1, 2, 3)},
    "scan_forward": {"num_warps": (4, 8), "num_stages": (1, 2, 3), "maxnreg": REGISTERS},
    "gate_backward": ELEMENTWISE,
    "scan_backward": {"num_warps": (4, 8), "num_stages": (1, 2, 3), "maxnreg": REGISTERS},
    "scores_backward": {"num_warps": (4, 8), "num_stages": (1, 2, 3, 4), "maxnreg": REGISTERS},
    "projections_backward": {"num_warps": (4, 8), "num_stages": (1, 2, 3, 4)},
    "convolution_backward": ELEMENTWISE,
    "cross_entropy": {"num_warps": (4, 8, 16, 32)},
}
# The same for --near. Left out: scores_forward, projections_backward and cross_entropy, which depend on d_state,
# length and vocabulary alone.
NEAR_ELEMENTWISE = {"ROWS": (8,), "COLUMNS": (128, 256, 512), "num_warps": (1, 2, 4)}
NEAR: dict[str, dict[str, tuple]] = {
    "norm_forward": {"ROWS": (1, 2, 4), "num_warps": (2, 4)},
    "norm_backward": {"ROWS": (2, 4), "num_warps": (1, 2, 4)},
    "convolution_forward": NEAR_ELEMENTWISE,
    "scan_forward": {"num_warps": (4,), "num_stages": (1, 3), "maxnreg": (None, 112, 128)},
    "gate_backward": {"ROWS": (2, 4), "COLUMNS": (256, 512), "num_warps": (2, 4)},
    "scan_backward": {"num_warps": (4,), "num_stages": (1, 2), "maxnreg": (None, 128, 168)},
    "scores_backward": {"num_warps": (4,), "num_stages": (2, 3, 4), "maxnreg": (128, 168)},
    "convolution_backward": NEAR_ELEMENTWISE,
}
# From the second layer on, kernels have every operand. More layers than the two launches outside them, to count both.
LAYERS = 3
COMPILED_BATCH = 4  # images of the steps that only compile: sizes have the divisors that Triton looks at
TOLERANCE = 1e-2  # relative difference of loss and gradient norm that rounding may cause
Tile = dict[str, int | None]


@dataclass
class Call:
    """Arguments of one launch."""

    kernel: triton.JITFunction
    grid: tuple[int, ...]
    arguments: tuple
    options: dict

    def run(self) -> None:
        self.kernel[self.grid](*self.arguments, **self.options)


def allowed(tile: Tile) -> bool:
    """Return True if a thread of an elementwise kernel holds 2 to 64 values of a tile, in vectors of 2 to 8."""
    if "COLUMNS" not in tile:
        return True
    vector = tile["COLUMNS"] / (32 * tile["num_warps"])
    return 2 <= vector <= 8 and tile["ROWS"] * vector <= 64


def candidates(kernel: str, near: bool = False) -> list[Tile]:
    """Return the rows of the table to try, the current one first."""
    axes = {**CANDIDATES, **NEAR}[kernel] if near else CANDIDATES[kernel]
    tiles = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    return [TILING[kernel], *(tile for tile in tiles if allowed(tile) and tile != TILING[kernel])]


@lru_cache(1)
def network(model: str) -> AiM:
    """Build a preset with a few layers on the GPU, whose modulation is not the identity as in a new network."""
    torch.manual_seed(0)
    aim = AiM(replace(AiMConfig.preset(model), n_layer=LAYERS), backend="triton").cuda()
    for name, weight in aim.named_parameters():
        if "adaLN" in name or "scale_shift" in name:
            torch.nn.init.normal_(weight, std=0.02)
    return aim


def record(model: str, batch: int, kernel: str, tile: Tile) -> tuple[Call, torch.Tensor, int]:
    """Train a step with a candidate.

    Returns:
        the kernel's call with the most operands; loss and gradient norm; launches per step of the whole network.
    """
    aim, calls = network(model), []
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(aim.config.vocab_size, (batch, aim.config.num_tokens), generator=generator)
    labels = torch.randint(aim.config.num_classes, (batch,), generator=generator)

    def recorded(key, function, grid, *arguments, **options) -> None:
        if function.fn.__name__ == kernel:
            calls.append(Call(function, grid, arguments, options))
        launch(key, function, grid, *arguments, **options)

    with ExitStack() as patches:
        patches.enter_context(mock.patch.dict(TILING, {kernel: tile}))
        for module in (loss, mixer, norm):
            patches.enter_context(mock.patch.object(module, "launch", recorded))
        with torch.autocast("cuda", dtype=torch.bfloat16):
            value = aim.loss(codes.cuda(), labels.cuda())
        value.backward()
    gradient = torch.nn.utils.get_total_norm(weight.grad for weight in aim.parameters() if weight.grad is not None)
    aim.zero_grad()
    result = torch.stack([value.detach(), gradient])
    per_layer, others = divmod(len(calls), LAYERS)
    launches = per_layer * AiMConfig.preset(model).n_layer + others
    return max(calls, key=lambda call: sum(argument is not None for argument in call.arguments)), result, launches


def compile_only(model: str, kernel: str, tile: Tile) -> None:
    """Compile a candidate into Triton's cache; its failure is reported when it is timed."""
    try:
        record(model, COMPILED_BATCH, kernel, tile)
    except Exception as error:
        print(f"  {kernel} {tile}: {reason(error)}", flush=True)


def reason(error: Exception) -> str:
    """Return the first line of an error with its type."""
    return f"{type(error).__name__} {str(error).partition(chr(10))[0][:100]}"


def search(model: str, batch: int, kernel: str, tiles: list[Tile]) -> list[dict]:
    """Time some tiles of a kernel; return the first row and the best three others, with microseconds per launch."""
    rows, expected = [], None
    for tile in tiles:
        try:
            call, result, launches = record(model, batch, kernel, tile)
            expected = result if expected is None else expected
            if not torch.allclose(result, expected, rtol=TOLERANCE):
                raise ArithmeticError(f"loss and gradient norm are {result.tolist()}, not {expected.tolist()}")
            seconds = triton.testing.do_bench_cudagraph(call.run, rep=10, return_mode="min") / 1e3
            rows.append({"kernel": kernel, "tile": tile, "microseconds": round(seconds * 1e6, 1), "launches": launches})
        except Exception as error:  # for example too much shared memory: try the others
            print(f"  {kernel} {tile}: {reason(error)}", flush=True)
    return rows[:1] + sorted(rows[1:], key=lambda row: row["microseconds"])[:3]


def main() -> None:
    """Search all kernels, print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=words, default="AiM-B:64", help="presets and images per step")
    parser.add_argument("--kernels", type=words, help="of the table (default: all)")
    parser.add_argument("--near", action="store_true", help="fewer candidates")
    parser.add_argument("--workers", type=int, default=14, help="processes that compile")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: this search needs an NVIDIA GPU")
    cases = [(model, int(batch)) for model, batch in (case.split(":") for case in options.cases)]
    tiles = {name: candidates(name, options.near) for name in options.kernels or (NEAR if options.near else CANDIDATES)}
    models = dict.fromkeys(model for model, _ in cases)
    jobs = [(model, kernel, tile) for model in models for kernel, rows in tiles.items() for tile in rows]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        pool.starmap(compile_only, jobs, chunksize=4)
    results = []
    for model, batch in cases:
        for kernel in tiles:
            rows = search(model, batch, kernel, tiles[kernel])
            for number, row in enumerate(rows):
                name = f"{model} {batch} {kernel}" if not number else ""
                print(f"{name:32s}{row['microseconds']:8.1f} µs {row['launches']:5d}  {row['tile']}", flush=True)
            results += [row | {"model": model, "batch": batch} for row in rows]
            path = save("tune_training", results)  # after each kernel, so that a search that is cut short keeps them
    print(f"{hardware()}; {len(jobs)} candidates; written to {path}")


if __name__ == "__main__":
    main()
