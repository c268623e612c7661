"""Seconds for the codes of images with guidance: the fast decoder, the plain one, and the memory-bandwidth bound.

python benchmarks/sampling.py [--cases AiM-B:16,AiM-B:16:1024] [--repeats 5] [--no_plain] [--seconds 600]
A case is MODEL:IMAGES or MODEL:IMAGES:CODES, 256 codes by default. Medians after warm-up; top_k 600, top_p 0.98, random
weights. On a CPU: AiM-B with 4 images. Writes benchmarks/results/sampling_HARDWARE_DATE.json and a table of the same
name, after each row. Cases that would start after --seconds are left out.

- fast_s, plain_s: of each decoder; compile_s: first call, with kernels compiled into empty caches (a kernel that an
  earlier row has compiled is not compiled again); capture_s: first call of a new decoder.
- floor_s: time of the bytes alone, in the better of dual and recurrent form; times_floor: fast_s over floor_s. All
  values count as 2 bytes on a GPU, although the fast decoder packs inputs of past codes to one.
- published_s: of the published code on the same kind of GPU, else published_h100_s; ratio: published over fast_s.
- goal_s, stretch_s: to reach on one H200.
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

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.sampling import generate, release_decoders

# Seconds for 256 codes: published code with torch 2.11 on an H100 and on an H200; to reach and stretch on an H200.
GOALS = {
    ("AiM-B", 1): (0.681, 0.659, 0.056, 0.045),
    ("AiM-B", 16): (0.899, 0.749, 0.088, 0.075),
    ("AiM-B", 64): (1.200, 1.105, 0.190, 0.160),
    ("AiM-L", 16): (1.438, None, 0.205, 0.170),
    ("AiM-L", 64): (2.220, None, 0.460, 0.400),
    ("AiM-XL", 16): (1.810, None, 0.290, 0.250),
}
# Further cases (model, images, codes). The goal of those with 16 images is FLOORS times the time of the bytes.
OTHERS = [("AiM-1B", 16, 256), ("AiM-B", 16, 576), ("AiM-B", 16, 1024), ("AiM-B", 128, 256), ("AiM-B", 256, 256)]
FLOORS = 2.5
OPTIONS = {"cfg_scale": 2.0, "top_k": 600, "top_p": 0.98}
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", help="MODEL:IMAGES[:CODES], with commas (default: all that the device is meant for)")
    parser.add_argument("--repeats", type=int, default=5, help="calls behind each median")
    parser.add_argument("--no_plain", action="store_true", help="leave the plain decoder out")
    parser.add_argument("--seconds", type=float, default=600, help="after which no case starts")
    options, start = parser.parse_args(), time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    everything = [(*case, 256) for case in GOALS] + OTHERS
    cases = everything if device.type == "cuda" else [("AiM-B", 4, 256)]
    if options.cases:
        cases = [parse_case(text) for text in options.cases.split(",")]
    empty = tempfile.TemporaryDirectory(prefix="compiled_")
    os.environ |= {"TRITON_CACHE_DIR": f"{empty.name}/triton", "TORCHINDUCTOR_CACHE_DIR": f"{empty.name}/inductor"}
    rate, rows = bandwidth(device), []
    print(f"{hardware()}: copies {rate / 1e12:.3f} TB/s; seconds for all codes, guidance on", flush=True)
    for number, case in enumerate(cases):
        if time.monotonic() - start > options.seconds:
            print(f"stopped after {options.seconds:g} s; not measured: {cases[number:]}")
            break
        keep(rows, codes(*case, device, options.repeats, not options.no_plain, rate))


def parse_case(text: str) -> tuple[str, int, int]:
    """Return model, images and codes of MODEL:IMAGES[:CODES]."""
    name, images, *codes = text.split(":")
    return name, int(images), int(codes[0]) if codes else 256


def keep(rows: list[Row], row: Row, benchmark: str = "sampling") -> None:
    """Print one more row and write all so far."""
    rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    path = save(benchmark, rows)
    write_table(path.with_suffix(".md"), rows, benchmark)
    print(f"written to {path} and {path.with_suffix('.md').name}", flush=True)


def codes(name: str, batch: int, num_tokens: int, device: torch.device, repeats: int, plain: bool, rate: float) -> Row:
    """Measure sampling of codes; `rate` is the bandwidth in bytes per second, peak_gib the fast decoder's."""
    model, labels = network(name, device, num_tokens), torch.arange(batch)
    draw = lambda decoder: lambda: generate(model, labels, decoder=decoder, **OPTIONS)  # noqa: E731
    reset_peak(device)
    row: Row = {"what": "codes", "model": name, "batch": batch, "codes": num_tokens, **load(device)}
    for first in ("compile_s", "capture_s"):
        release_decoders(model)
        (row[first],) = timed(draw("fast"), device, 1, warm_up=0)
    row["fast_s"] = statistics.median(timed(draw("fast"), device, repeats))
    row |= {"images_per_s": batch / row["fast_s"], **peak(device)}
    if plain:
        row["plain_s"] = statistics.median(timed(draw("plain"), device, max(1, repeats // 3)))
    row["floor_s"] = min(traffic(model.config, batch, 2 if device.type == "cuda" else 4)) / rate
    row["times_floor"] = row["fast_s"] / row["floor_s"]
    release_decoders(model)
    return row | goals(name, batch, num_tokens, row)


def network(name: str, device: torch.device, num_tokens: int = 256) -> AiM:
    """Build a preset with random weights."""
    torch.manual_seed(0)
    # On the device itself: a CPU initialises a billion weights in half a minute.
    with device:
        return AiM(AiMConfig.preset(name, num_tokens=num_tokens)).eval()


def goals(name: str, batch: int, num_tokens: int, row: Row) -> Row:
    """Return the published code's time and the goals of a row; nothing on other hardware than H100 and H200."""
    machine = hardware()
    if "H100" not in machine and "H200" not in machine:
        return {}
    if (name, batch, num_tokens) in OTHERS:
        return {"goal_s": FLOORS * row["floor_s"]} if batch == 16 else {}
    if num_tokens != 256 or (name, batch) not in GOALS:
        return {}
    on_h100, on_h200, goal, stretch = GOALS[name, batch]
    published = on_h200 if "H200" in machine else on_h100
    result = {"published_s": published} if published else {"published_h100_s": on_h100}
    return result | {"ratio": (published or on_h100) / row["fast_s"], "goal_s": goal, "stretch_s": stretch}


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


def write_table(path: Path, rows: list[Row], benchmark: str) -> None:
    """Write the rows as Markdown, one table per kind; missing values are empty cells."""
    lines = [
        f"# {benchmark.capitalize()} on {hardware()}",
        "",
        f"Made by benchmarks/{benchmark}.py; its .json has command and versions.",
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
