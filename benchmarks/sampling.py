"""Seconds for 256 codes with guidance: the fast decoder, the plain one, and the time the bytes alone would take.

python benchmarks/sampling.py [--models AiM-B,AiM-B] [--batches 1,16] [--repeats 5] [--no_plain]
Medians after warm-up; top_k 600, top_p 0.98, random weights. On a CPU: AiM-B batch 4.
"""

import argparse
import statistics
import time

import torch
from record import hardware, save

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.sampling import generate, release_decoders

# Seconds of the published code on one H100 80GB, torch 2.11.
PUBLISHED = {("AiM-B", 1): 0.681, ("AiM-B", 16): 0.899, ("AiM-B", 64): 1.2, ("AiM-L", 16): 1.438, ("AiM-L", 64): 2.22}
PUBLISHED[("AiM-XL", 16)] = 1.81
GPU = [("AiM-B", 1), ("AiM-B", 16), ("AiM-B", 64), ("AiM-L", 16), ("AiM-L", 64), ("AiM-XL", 16)]
CPU = [("AiM-B", 4)]


def bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy, read and written."""
    source = torch.ones(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(timed(lambda: target.copy_(source), device, 10))


def timed(work, device: torch.device, repeats: int) -> list[float]:
    """Seconds of each repeat, after one to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def traffic(config: AiMConfig, batch: int, size: int) -> tuple[float, float]:
    """Bytes of a sequence with guidance, recurrent and dual form; weights and values of `size` bytes."""
    with torch.device("meta"):
        model = AiM(config)
    once = ("adaLN_modulation", "adaln_group", "cls_embed", "position_embeddings")
    weights = sum(p.numel() for name, p in model.named_parameters() if not any(word in name for word in once))
    steps, rows = config.num_tokens, 2 * batch * config.n_layer
    state = config.nheads * config.headdim * config.d_state
    stored = config.d_inner + config.d_state + 2 * config.nheads
    fixed = weights * steps * size
    return fixed + 2 * rows * state * steps * size, fixed + rows * stored * steps * steps / 2 * size


def measure(name: str, batch: int, device: torch.device, repeats: int, plain: bool, rate: float) -> dict:
    torch.manual_seed(0)
    model = AiM(AiMConfig.preset(name)).to(device).eval()
    labels, size = torch.arange(batch), 2 if device.type == "cuda" else 4
    options = {"cfg_scale": 2.0, "top_k": 600, "top_p": 0.98}
    start = time.perf_counter()
    generate(model, labels, decoder="fast", **options)
    row = {"model": name, "batch": batch, "first_call": round(time.perf_counter() - start, 2)}
    row["fast"] = statistics.median(timed(lambda: generate(model, labels, decoder="fast", **options), device, repeats))
    if plain:
        work = lambda: generate(model, labels, decoder="plain", **options)  # noqa: E731
        row["plain"] = statistics.median(timed(work, device, max(1, repeats // 3)))
    row["recurrent_bytes"], row["dual_bytes"] = (bytes_ / rate for bytes_ in traffic(model.config, batch, size))
    row["published_h100"] = PUBLISHED.get((name, batch)) if device.type == "cuda" else None
    row["images_per_second"] = batch / row["fast"]
    if device.type == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    release_decoders(model)
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help="presets, with commas (default: all that the device is meant for)")
    parser.add_argument("--batches", help="images, one for each model")
    parser.add_argument("--repeats", type=int, default=5, help="calls behind each median")
    parser.add_argument("--no_plain", action="store_true", help="leave the plain decoder out")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = GPU if device.type == "cuda" else CPU
    if options.models:
        cases = list(zip(options.models.split(","), map(int, options.batches.split(",")), strict=True))
    rate, rows = bandwidth(device), []
    print(f"{hardware()}: copies {rate / 1e12:.2f} TB/s; seconds for 256 codes, guidance on", flush=True)
    for name, batch in cases:
        rows.append(measure(name, batch, device, options.repeats, not options.no_plain, rate))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(f"written to {save('sampling', rows)}")


if __name__ == "__main__":
    main()
