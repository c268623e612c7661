"""Measure images per second of the encoder of `tokenize`, of a plain float32 encode, and of its loader.

python benchmarks/tokenizing.py [--weights runs/EXP/RUN] [--batch_sizes 64,256] [--compiled 256]
(The name tokenize.py would hide the standard library module from every script in this directory.)

One run measures all paths in interleaved rounds and reports medians. The plain encode is the tokenizer's own in
float32 with TF32 off, in batches of 64. Without --weights: VQ-16 with random weights on a GPU, a small one on a CPU.
--images 0 measures the loader alone, which needs no GPU.
"""

import argparse
import copy
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from record import commit, hardware, save

from aim_lightning.data.images.dataset import ImageDataset, Images
from aim_lightning.data.images.directory import open_source
from aim_lightning.data.images.transforms import ImageTransform
from aim_lightning.data.tokens.format.tokenize_options import TokenizeOptions, Views
from aim_lightning.data.tokens.write.encode import CHANNELS_LAST, Encoder, ImageBatches
from aim_lightning.models import VQConfig, VQModel
from aim_lightning.pipeline import load_tokenizer
from aim_lightning.utils.pixels import to_unit_range
from aim_lightning.utils.precision import exact_products

PLAIN_BATCH = 64
TARGETS = {"bf16": 2.5, "tf32": 1.5, "float32": 1.0}
OTHER = " *"  # a memory format that `tokenize` does not use
IMAGENET = 1_281_167
MINI = "data/fashion_mnist_mini/val"
SMALL = VQConfig(image_size=32, codebook_size=256, base_channels=16, channel_multipliers=(1, 2, 2), norm_groups=8)


def random_images(size: int, count: int) -> torch.Tensor:
    """Return the first `count` included images at the tokenizer's size, uint8 (count, 3, size, size)."""
    transform = ImageTransform(size, pad=2) if size == 32 else ImageTransform(size, crop="adm_center")
    source = ImageDataset(open_source(MINI), transform)
    return source.batch(range(count))[0]


def encode_paths(
    tokenizer: VQModel, device: torch.device, sizes: list[int], compiled: list[int]
) -> dict[str, tuple[int, Callable[[torch.Tensor], torch.Tensor]]]:
    """Return (batch size, function from uint8 images to codes) by name."""
    plain = copy.deepcopy(tokenizer).to(device=device, memory_format=torch.contiguous_format)

    @torch.no_grad()
    def plain_encode(images: torch.Tensor) -> torch.Tensor:
        with exact_products(False):
            torch.backends.cudnn.deterministic = False  # restored by exact_products
            return plain.encode(to_unit_range(images))

    paths = {"plain": (PLAIN_BATCH, plain_encode)}
    for precision in ("float32", "tf32", "bf16") if device.type == "cuda" else ("float32", "bf16"):
        for size, fused in [(size, False) for size in sizes] + [(size, True) for size in compiled]:
            for channels_last in (True, False):
                name = f"{precision}, batch {size}{', compiled' if fused else ''}"
                if channels_last != ((device.type, precision) in CHANNELS_LAST):
                    name += f", {'channels-last' if channels_last else 'contiguous'}{OTHER}"
                encoder = Encoder(copy.deepcopy(tokenizer), device, precision, fused, channels_last)
                paths[name] = (size, encoder)
    return paths


def measure(paths: dict, images: torch.Tensor, repeats: int) -> dict[str, dict[str, float]]:
    """Return images/s (median), ratio to plain, and share of codes equal to plain's."""

    def seconds(name: str) -> float:
        size, encode = paths[name]
        _wait(images)
        start = time.perf_counter()
        for part in images.split(size):
            encode(part)
        _wait(images)
        return time.perf_counter() - start

    codes = {
        name: torch.cat([encode(part).int() for part in images.split(size)]) for name, (size, encode) in paths.items()
    }
    rates = {name: [] for name in paths}
    for _ in range(repeats):
        for name in paths:
            rates[name].append(len(images) / seconds(name))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        name: {
            "images_per_s": rate,
            "ratio": rate / medians["plain"],
            "equal_codes": (codes[name] == codes["plain"]).float().mean().item(),
        }
        for name, rate in medians.items()
    }


def _wait(images: torch.Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize()


def natural_jpeg(seed: int, width: int = 500, height: int = 375) -> bytes:
    """Return a JPEG with the 1/f spectrum of photographs, near ImageNet's 110 kB at that size."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]) + 1 / width
    noise = np.fft.fft2(rng.standard_normal((3, height, width))) / frequency
    pixels = np.real(np.fft.ifft2(noise))
    pixels = 128 + 50 * (pixels - pixels.mean()) / pixels.std()
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def loader_rates(size: int, count: int = 64, repeats: int = 5) -> list[dict]:
    """Return images per second and core: 500-pixel JPEGs read, decoded and cropped as in `tokenize`'s workers."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "any"
        directory.mkdir()
        for i in range(count):
            (directory / f"{i}.jpg").write_bytes(natural_jpeg(i))
        kilobytes = sum(path.stat().st_size for path in directory.iterdir()) / count / 1000
        source = Images(name, name, image_size=size, crop="adm_center").open("train")
        for views in (Views("center"), Views("ten_crop"), Views("ten_crop", (1.1, 1.05))):
            batches = ImageBatches(source, TokenizeOptions(views, batch_size=count), [range(count)])
            rate = statistics.median(_rate(batches, count) for _ in range(repeats))
            facts = {"of": "loader", "views": views.count, "images_per_s_and_core": rate, "mean_kB": kilobytes}
            rows.append({**facts, "imagenet_core_hours": IMAGENET / rate / 3600})
    return rows


def _rate(batches: ImageBatches, count: int) -> float:
    """Return images per second of processor time, which other programs do not affect."""
    start = time.process_time()
    batches[0]
    return count / (time.process_time() - start)


def summary(encoding: dict[str, dict[str, float]], loading: list[dict]) -> list[dict]:
    """Return the fastest path per precision with its target, hours for ImageNet on one device, and loader processes."""
    rows = []
    for precision, aim in TARGETS.items():
        paths = {n: row for n, row in encoding.items() if n.startswith(precision) and not n.endswith(OTHER)}
        if not paths:
            continue
        name = max(paths, key=lambda name: paths[name]["ratio"])
        rate = paths[name]["images_per_s"]
        hours = {str(views): IMAGENET * views / rate / 3600 for views in (1, 2, 10, 20)}
        workers = {str(row["views"]): rate / row["views"] / row["images_per_s_and_core"] for row in loading}
        facts = {"of": "aim", "precision": precision, "aim": aim, "reached": paths[name]["ratio"] >= aim, "path": name}
        rows.append({**facts, **paths[name], "imagenet_hours_by_views": hours, "loader_processes_by_views": workers})
    return rows


def report(encoding: dict[str, dict[str, float]], loading: list[dict], aims: list[dict]) -> None:
    """Print all results."""
    for name, row in encoding.items():
        speed = f"{row['images_per_s']:9.1f} images/s {row['ratio']:6.2f} x"
        print(f"  {name:48s}{speed}  {row['equal_codes']:8.3%} codes equal")
    if encoding:
        print("  * = not the memory format that `tokenize` uses")
    for row in aims:
        print(f"{row['precision']}: {row['ratio']:.2f} x (aim {row['aim']} x) by {row['path']}")
        print("  ImageNet on one device, hours by views:", _numbers(row["imagenet_hours_by_views"]))
        print("  loader processes to keep up, by views:", _numbers(row["loader_processes_by_views"]))
    print(f"loader, 500x375 JPEGs of {loading[0]['mean_kB']:.0f} kB:")
    for row in loading:
        rate, hours = row["images_per_s_and_core"], row["imagenet_core_hours"]
        print(f"  {row['views']:3d} views {rate:8.1f} images/s and core; ImageNet {hours:.2f} core hours")


def _numbers(values: dict[str, float]) -> str:
    return ", ".join(f"{views}: {value:.2f}" for views, value in values.items())


def main() -> None:
    """Measure, print and save the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="run directory of a tokenizer (default: random weights)")
    parser.add_argument("--batch_sizes", default="64,256", help="images encoded at once")
    parser.add_argument("--compiled", default="", help="batch sizes to measure with torch.compile too, e.g. 256")
    parser.add_argument("--images", type=int, default=512, help="images a round; 0 = the loader alone")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the loader is measured on one core
    print(f"{hardware()}, torch {torch.__version__}, commit {commit()}, {options.weights or 'random weights'}")
    encoding = _encoding(options) if options.images else {}
    loading = loader_rates(256, repeats=options.repeats)
    aims = summary(encoding, loading)
    report(encoding, loading, aims)
    encoding_rows = [{"of": "encoding", "path": name, **row} for name, row in encoding.items()]
    record = f"tokenizing_{Path(options.weights).absolute().parent.name}" if options.weights else "tokenizing"
    print(save(record, [*encoding_rows, *aims, *loading]))


def _encoding(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    random = VQModel(VQConfig() if device.type == "cuda" else SMALL)
    tokenizer = load_tokenizer(options.weights) if options.weights else random
    numbers = ([int(part) for part in text.split(",") if part] for text in (options.batch_sizes, options.compiled))
    images = random_images(tokenizer.image_size, options.images).to(device)
    return measure(encode_paths(tokenizer.eval(), device, *numbers), images, options.repeats)


if __name__ == "__main__":
    main()
