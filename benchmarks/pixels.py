"""Measure the tokenizer's decoder alone, and codes and pixels with and without overlap.

python benchmarks/pixels.py [--batches 16,64,256] [--together 64,128,256] [--seconds 100]
VQ-16 and AiM-B with random weights; a CPU takes small networks. Writes benchmarks/results/pixels_HARDWARE_DATE.json
after each row. Measurements that would start after --seconds are left out.

- decoder: images/s of each variant, and how far its pixels are from float32 ones (norm over norm).
- codes: images/s without pixels, median of 3 calls.
- codes and pixels: `in series`; `concurrent`, pixels on another stream during the next codes, as the pipeline does; or
  `priority`, concurrent with codes on a stream of high priority. Mean over 4 batches after a warm-up.
- goal_images_per_s, stretch_images_per_s: of codes and pixels, to reach on one H200 at the best batch.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from record import hardware, save
from sampling import OPTIONS, network, peak, reset_peak, timed
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from training import words

from aim_lightning.models import AiM, AiMConfig, VQConfig, VQModel
from aim_lightning.pipeline import AiMPipeline
from aim_lightning.sampling import SamplingOptions, generate, release_decoders
from aim_lightning.utils.precision import exact_products

BLOCKS = 4  # of a measurement of codes and pixels
GOALS = {"goal_images_per_s": 330, "stretch_images_per_s": 400}  # codes and pixels on one H200
MODES = ("in series", "concurrent", "priority")
SMALL_VQ = {
    "image_size": 64,
    "codebook_size": 256,
    "base_channels": 16,
    "channel_multipliers": (1, 2, 2),
    "norm_groups": 8,
}
SMALL_AIM = {"d_model": 64, "n_layer": 2, "vocab_size": 256, "headdim": 16, "d_state": 16}
Decode = Callable[[Tensor], Tensor]
Row = dict[str, Any]


def decoders(tokenizer: VQModel, device: torch.device) -> dict[str, Decode]:
    """Return functions from codes to images by name."""
    result = {"float32": within(exact_products, tokenizer.decode), "autocast": autocast(tokenizer.decode, device)}
    if device.type == "cuda":
        from aim_lightning.models.vq.fused import FusedDecoder

        result["tf32"] = within(lambda: exact_products(True), tokenizer.decode)
        result["fused"] = FusedDecoder(tokenizer).decode
    return result


def within(context: Callable, decode: Decode) -> Decode:
    """Return the function within a context."""

    def work(codes: Tensor) -> Tensor:
        with context(), torch.no_grad():
            return decode(codes)

    return work


def autocast(decode: Decode, device: torch.device) -> Decode:
    """Return the function under bfloat16 autocast."""
    return within(lambda: torch.autocast(device.type, torch.bfloat16), decode)


def alone(name: str, decode: Decode, reference: Decode, codes: Tensor, flops: int) -> Row:
    """Measure a decoder without sampling; `first_s` is its first call."""
    device = codes.device
    reset_peak(device)
    first, *rest = timed(lambda: decode(codes), device, 4, warm_up=0)
    seconds = statistics.median(rest)
    row = {"what": "decoder", "variant": name, "batch": len(codes), "images_per_s": len(codes) / seconds}
    row |= {"tflops": flops * len(codes) / seconds / 1e12, "first_s": first - seconds, **peak(device)}
    expected = reference(codes[:4])
    return row | {"difference": float((decode(codes)[:4] - expected).norm() / expected.norm())}


def decoder_flops(tokenizer: VQModel) -> int:
    """Return the operations of decoding one image."""
    codes = torch.zeros(1, tokenizer.grid[0] * tokenizer.grid[1], dtype=torch.int64)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        VQModel(tokenizer.config).decode(codes.to("meta"))
    return counter.get_total_flops()


def codes_alone(model: AiM, batch: int, device: torch.device) -> Row:
    """Measure sampling of codes."""
    labels = torch.arange(batch) % model.config.num_classes
    reset_peak(device)
    seconds = statistics.median(timed(lambda: generate(model, labels, decoder="fast", **OPTIONS), device, 3))
    return {"what": "codes", "batch": batch, "images_per_s": batch / seconds, **peak(device)}


def together(pipeline: AiMPipeline, batch: int, pixels: str, mode: str, device: torch.device) -> Row:
    """Measure labels to images; `pixels` is fused or a precision."""
    on_gpu = device.type == "cuda"
    how = {"batch_size": batch, "pixel_precision": "bfloat16" if pixels == "fused" else pixels}
    # Pixels on the stream of the codes follow them in series.
    pipeline._pixel_decoder(pipeline.resolve(SamplingOptions(**how)))._stream = (
        torch.cuda.current_stream() if mode == "in series" and on_gpu else None
    )
    stream = torch.cuda.stream(torch.cuda.Stream(priority=-1)) if mode == "priority" else nullcontext()

    def work(blocks: int) -> None:
        labels = torch.arange(batch * blocks) % pipeline.aim.config.num_classes
        with stream:
            for _ in pipeline.batches(labels, decoder="fast", **OPTIONS, **how):
                pass

    work(1)
    reset_peak(device)
    (seconds,) = timed(lambda: work(BLOCKS), device, 1, warm_up=0)
    row = {"what": "codes and pixels", "batch": batch, "pixels": pixels, "mode": mode}
    row |= {"images_per_s": batch * BLOCKS / seconds, **peak(device)}
    return row | (GOALS if "H200" in hardware() else {})


def measure(options: argparse.Namespace, device: torch.device, keep: Callable[[Row], None]) -> None:
    """Run all measurements; `keep` receives each row and raises TimeoutError when the time is over."""
    on_gpu = device.type == "cuda"
    torch.manual_seed(0)
    tokenizer = VQModel(VQConfig(**({} if on_gpu else SMALL_VQ))).to(device).eval().requires_grad_(False)
    model = network("AiM-B", device) if on_gpu else AiM(AiMConfig(**SMALL_AIM)).eval()
    pipeline, flops = AiMPipeline(model, tokenizer), decoder_flops(tokenizer)
    sequence = lambda batch: torch.randint(tokenizer.codebook_size, (batch, model.config.num_tokens), device=device)  # noqa: E731
    ways = decoders(tokenizer, device)
    for batch in options.batches:
        for name, decode in ways.items():
            # float32 needs four times as long as bfloat16.
            if batch <= 64 or name not in ("float32", "tf32"):
                try:
                    row = alone(name, decode, ways["float32"], sequence(batch), flops)
                except RuntimeError as error:  # some kernels of PyTorch take at most 2^31 values
                    row = {"what": "decoder", "variant": name, "batch": batch, "error": str(error).splitlines()[0]}
                keep(row)
    for batch in options.together:
        keep(codes_alone(model, batch, device))
        for mode in MODES if on_gpu else MODES[:1]:
            keep(together(pipeline, batch, "fused" if on_gpu else "float32", mode, device))
        release_decoders(model)


def main() -> None:
    """Measure until all is done or the time is over, and write the record."""
    numbers = lambda text: [int(word) for word in words(text)]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=numbers, default="16,64,256", help="of the decoder alone")
    parser.add_argument("--together", type=numbers, default="64,128,256", help="batches of codes and pixels")
    parser.add_argument("--seconds", type=float, default=100, help="after which no measurement starts")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, deadline = [], time.monotonic() + options.seconds

    def keep(row: Row) -> None:
        rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        path = save("pixels", rows)
        if time.monotonic() > deadline:
            raise TimeoutError(path)

    print(hardware(), flush=True)
    try:
        measure(options, device, keep)
    except TimeoutError as stopped:
        print(f"stopped after {options.seconds:g} s; {stopped} has the rows so far")


if __name__ == "__main__":
    main()
