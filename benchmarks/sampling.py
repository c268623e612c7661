"""Seconds for 256 codes with guidance: the fast decoder, the plain one, and the memory-bandwidth bound.

python benchmarks/sampling.py [--models AiM-B,AiM-B] [--batches 1,16] [--repeats 5] [--no_plain] [--no_pixels]
Medians after warm-up; top_k 600, top_p 0.98, random weights. On a CPU: AiM-B batch 4. Then codes and pixels together,
AiM-B with VQ-16. Writes benchmarks/results/sampling_HARDWARE_DATE.json and a table of the same name, after each row.
Kernels and the pixels' decoder are compiled into empty caches: compile_s is the first call of a row, capture_s the
first one of a new decoder (a kernel that an earlier row has compiled is not compiled again).
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import hardware, save

from aim_lightning.models import AiM, AiMConfig, VQConfig, VQModel
from aim_lightning.pipeline import AiMPipeline
from aim_lightning.sampling import generate, release_decoders

# Seconds on one H100 80GB: (published code with torch 2.11, to reach, stretch).
GOALS = {
    ("AiM-B", 1): (0.681, 0.075, 0.050),
    ("AiM-B", 16): (0.899, 0.110, 0.080),
    ("AiM-B", 64): (1.200, 0.280, 0.190),
    ("AiM-L", 16): (1.438, 0.280, 0.190),
    ("AiM-L", 64): (2.220, 0.700, 0.500),
    ("AiM-XL", 16): (1.810, 0.420, 0.330),
}
PIXEL_GOALS = (160, 250)  # images/s on an H100, AiM-B batch 64: to reach, stretch
H200 = 0.75  # its times over an H100's, by their bandwidths
OPTIONS = {"cfg_scale": 2.0, "top_k": 600, "top_p": 0.98}
BLOCKS = 5  # of the measurement with pixels on a GPU, where they overlap
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help="presets, with commas (default: all that the device is meant for)")
    parser.add_argument("--batches", help="images, one for each model")
    parser.add_argument("--repeats", type=int, default=5, help="calls behind each median")
    parser.add_argument("--no_plain", action="store_true", help="leave the plain decoder out")
    parser.add_argument("--no_pixels", action="store_true", help="leave codes and pixels together out")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = list(GOALS) if device.type == "cuda" else [("AiM-B", 4)]
    if options.models:
        cases = list(zip(options.models.split(","), map(int, options.batches.split(",")), strict=True))
    empty = tempfile.TemporaryDirectory(prefix="compiled_")
    os.environ |= {"TRITON_CACHE_DIR": f"{empty.name}/triton", "TORCHINDUCTOR_CACHE_DIR": f"{empty.name}/inductor"}
    rate, rows = bandwidth(device), []
    print(f"{hardware()}: copies {rate / 1e12:.3f} TB/s; seconds for 256 codes, guidance on", flush=True)
    for name, batch in cases:
        keep(rows, codes(name, batch, device, options.repeats, not options.no_plain, rate))
    if not options.no_pixels:
        for how in pixel_options(device):
            keep(rows, pixels(64 if device.type == "cuda" else 4, device, how))


def keep(rows: list[Row], row: Row) -> None:
    """Print one more row and write all so far."""
    rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    path = save("sampling", rows)
    write_table(path.with_suffix(".md"), rows)
    print(f"written to {path} and {path.with_suffix('.md').name}", flush=True)


def codes(name: str, batch: int, device: torch.device, repeats: int, plain: bool, rate: float) -> Row:
    """Measure sampling of codes.

    compile_s: first call; capture_s: first call of a second decoder; peak_gib: the fast decoder's.
    """
    model, labels = network(name, device), torch.arange(batch)
    draw = lambda decoder: lambda: generate(model, labels, decoder=decoder, **OPTIONS)  # noqa: E731
    reset_peak(device)
    row: Row = {"what": "codes", "model": name, "batch": batch, **load(device)}
    for first in ("compile_s", "capture_s"):
        release_decoders(model)
        (row[first],) = timed(draw("fast"), device, 1, warm_up=0)
    row["fast_s"] = statistics.median(timed(draw("fast"), device, repeats))
    row |= peak(device)
    if plain:
        row["plain_s"] = statistics.median(timed(draw("plain"), device, max(1, repeats // 3)))
    size = 2 if device.type == "cuda" else 4
    recurrent, dual = traffic(model.config, batch, size)
    row |= {"dual_bytes_s": dual / rate, "recurrent_bytes_s": recurrent / rate, "images_per_s": batch / row["fast_s"]}
    release_decoders(model)
    return row | goals(name, batch)


def pixels(batch: int, device: torch.device, how: dict) -> Row:
    """Measure labels to images with VQ-16, in several blocks on a GPU, where decoding overlaps with sampling."""
    model = network("AiM-B", device)
    torch.manual_seed(0)
    pipeline = AiMPipeline(model, VQModel(VQConfig()).requires_grad_(False))
    labels = torch.arange(batch * (BLOCKS if device.type == "cuda" else 1)) % 1000

    def work() -> None:
        for _ in pipeline.batches(labels, batch_size=batch, decoder="fast", **OPTIONS, **how):
            pass

    reset_peak(device)
    first, *rest = timed(work, device, 4 if device.type == "cuda" else 2, warm_up=0)
    seconds = statistics.median(rest)
    row = {"what": "codes and pixels", "model": "AiM-B", "batch": batch, **load(device), **how, "fast_s": seconds}
    row |= {"compile_s": max(0.0, first - seconds)} if how.get("pixel_compile") else {}
    row |= {"images_per_s": len(labels) / seconds, **peak(device)}
    if gpu_factor() is not None and batch == 64:
        row["goal_images_per_s"], row["stretch_images_per_s"] = (goal / gpu_factor() for goal in PIXEL_GOALS)
    return row


def pixel_options(device: torch.device) -> list[dict]:
    """Return the pixel options to measure."""
    plain, tf32, narrow = ({"pixel_precision": name} for name in ("float32", "tf32", "bfloat16"))
    return [plain, tf32, narrow, narrow | {"pixel_compile": True}] if device.type == "cuda" else [plain]


def network(name: str, device: torch.device) -> AiM:
    """Build a preset with random weights."""
    torch.manual_seed(0)
    return AiM(AiMConfig.preset(name)).to(device).eval()


def gpu_factor() -> float | None:
    """Return the factor from the goals' hardware to this machine; None on other hardware."""
    name = hardware()
    return 1.0 if "H100" in name else H200 if "H200" in name else None


def goals(name: str, batch: int) -> Row:
    """Return the published code's time on an H100, and the goals for this machine."""
    result, factor = GOALS.get((name, batch)), gpu_factor()
    if result is None or factor is None:
        return {}
    return {"published_h100_s": result[0], "goal_s": result[1] * factor, "stretch_s": result[2] * factor}


def bandwidth(device: torch.device) -> float:
    """Measure the bytes per second of a large copy, read and written."""
    source = torch.ones(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(timed(lambda: target.copy_(source), device, 10))


def timed(work: Callable[[], Any], device: torch.device, repeats: int, warm_up: int = 1) -> list[float]:
    """Return the seconds of each repeat, until the device has finished."""
    seconds = []
    for _ in range(repeats + warm_up):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds[warm_up:]


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: torch.device) -> None:
    """Reset the peak of allocated memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak(device: torch.device) -> Row:
    """Return the peak of allocated memory since the reset; nothing on a CPU."""
    return {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if device.type == "cuda" else {}


def load(device: torch.device) -> Row:
    """Return a CPU's load average; more than one per core means other processes shared the machine."""
    return {} if device.type == "cuda" else {"load_average": os.getloadavg()[0]}


def traffic(config: AiMConfig, batch: int, size: int) -> tuple[float, float]:
    """Return the bytes of a sequence with guidance, recurrent and dual form; values of `size` bytes."""
    with torch.device("meta"):
        model = AiM(config)
    once = ("adaLN_modulation", "adaln_group", "cls_embed", "position_embeddings")
    weights = sum(p.numel() for name, p in model.named_parameters() if not any(word in name for word in once))
    steps, rows = config.num_tokens, 2 * batch * config.n_layer
    state = config.nheads * config.headdim * config.d_state
    stored = config.d_inner + config.d_state + 2 * config.nheads
    fixed = weights * steps * size
    return fixed + 2 * rows * state * steps * size, fixed + rows * stored * steps * steps / 2 * size


def write_table(path: Path, rows: list[Row]) -> None:
    """Write the rows as Markdown, one table per kind; missing values are empty cells."""
    lines = [
        f"# Sampling on {hardware()}",
        "",
        "Made by benchmarks/sampling.py; its .json has command and versions.",
        "",
    ]
    for title in dict.fromkeys(row["what"] for row in rows):
        table = [{key: value for key, value in row.items() if key != "what"} for row in rows if row["what"] == title]
        names = list(dict.fromkeys(key for row in table for key in row))
        lines += [f"## {title}", "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        lines += [f"| {' | '.join(str(row.get(name, '')) for name in names)} |" for row in table] + [""]
    path.write_text("\n".join(lines[:-1]) + "\n")


if __name__ == "__main__":
    main()
