"""`aim-lightning sample`: pictures from a trained run."""

import argparse
from pathlib import Path

import torch
from rich.progress import track

from aim_lightning.cli.build import device
from aim_lightning.cli.config import backend_of, run_directory
from aim_lightning.config import Document
from aim_lightning.pipeline import AiMPipeline, load, load_tokenizer
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.grid import labelled_grid, save_png

DEFAULT_CLASSES = 10


def run(document: Document, options: argparse.Namespace) -> int:
    """Writes a PNG a picture and one grid, a row a class."""
    directory = run_directory(document)
    source = document.values["tokenizer"]
    tokenizer = load_tokenizer(source) if source else None
    pipeline = load(directory.path, raw=options.raw, tokenizer=tokenizer, backend=backend_of(document)).to(device())
    sampling = SamplingOptions(**document.values["sampling"])
    labels = choose_classes(options.classes, pipeline.class_names)
    if options.num < 1:
        raise UserError(f"--num is {options.num}; it must be at least 1")
    images = _draw(pipeline, labels, options.num, sampling)
    out = Path(options.out) if options.out else directory.samples
    names = [pipeline.class_names[label] for label in labels]
    _save(images, out, names, options.num, sampling.seed)
    print(f"{len(images)} pictures and {out / 'sampled.png'}; other guidance: --sampling.cfg_scale 3")
    return 0


def choose_classes(text: str | None, class_names: list[str]) -> list[int]:
    """Labels for "sneaker,bag" or "7,8"; None means the first ten.

    Raises:
        UserError: no such class.
    """
    if text is None:
        return list(range(min(len(class_names), DEFAULT_CLASSES)))
    by_name = {name.lower(): label for label, name in enumerate(class_names)}
    labels = []
    for part in (part.strip() for part in text.split(",")):
        label = by_name.get(part.lower(), int(part) if part.isdecimal() else -1)
        if not 0 <= label < len(class_names):
            known = ", ".join(class_names[:12]) + (", …" if len(class_names) > 12 else "")
            raise UserError(f"--classes: there is no class {part!r}; classes are {known}")
        labels.append(label)
    return labels


def _draw(pipeline: AiMPipeline, labels: list[int], num: int, sampling: SamplingOptions) -> torch.Tensor:
    wanted = torch.tensor(labels).repeat_interleave(num)
    batches = pipeline.batches(wanted, **sampling.options())
    steps = -(-len(wanted) // sampling.batch_size)
    return torch.cat([batch.cpu() for batch in track(batches, "sampling", total=steps)])


def _save(images: torch.Tensor, out: Path, names: list[str], num: int, seed: int) -> None:
    for i, image in enumerate(images):
        name = names[i // num].replace("/", "-").replace(" ", "-")
        save_png(image, out / f"{name}-seed{seed}-{i:05d}.png")
    save_png(labelled_grid(images, num, names), out / "sampled.png")
