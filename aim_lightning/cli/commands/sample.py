"""`aim-lightning sample`: images from a trained run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aim_lightning.cli.class_labels import choose_classes
from aim_lightning.cli.commands.config import backend_of, run_directory
from aim_lightning.cli.common_options import add_raw, boolean
from aim_lightning.cli.config import Config
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.progress import ProgressBar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from aim_lightning.pipeline import AiMPipeline
    from aim_lightning.sampling import SamplingOptions

HELP = "generate images with a trained run"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    classes = 'classes by name or number, "sneaker,bag" (default: the first 10)'
    parser.add_argument("--classes", metavar="NAMES", help=classes)
    parser.add_argument("--num", type=int, default=8, help="images per class (default: 8)")
    parser.add_argument("--out", help="directory for the images (default: runs/EXPERIMENT/RUN/samples)")
    add_raw(parser)
    untrained = "sample with guidance from a network trained with label_dropout 0 or 1 (default: false)"
    parser.add_argument("--allow_untrained_guidance", action="store_true", help=untrained)
    animated = "also write sampled.gif, in which the images appear row by row (default: false)"
    parser.add_argument("--animate", nargs="?", const=True, type=boolean, default=False, metavar="BOOL", help=animated)


def run(document: Config, options: argparse.Namespace) -> int:
    """Writes a PNG an image and one grid, a row a class; with --animate an animation of the grid too."""
    from aim_lightning.cli.build.trainer_cli import device
    from aim_lightning.pipeline import load, load_tokenizer
    from aim_lightning.sampling import SamplingOptions
    from aim_lightning.utils.grid import labelled_grid, save_gif

    directory = run_directory(document)
    source = document.values["tokenizer"]
    tokenizer = load_tokenizer(source) if source else None
    pipeline = load(
        directory.path,
        raw=options.raw,
        tokenizer=tokenizer,
        backend=backend_of(document),
        device=device(),
        allow_untrained_guidance=options.allow_untrained_guidance,
    )
    sampling = SamplingOptions(**document.values["sampling"])
    labels = choose_classes(options.classes, pipeline.class_names)
    if options.num < 1:
        raise UserError(f"--num is {options.num}; it must be at least 1")
    parts: list[Tensor] = []
    seen = pipeline.preview(lambda images: parts.append(images.cpu())) if options.animate else None
    images = _draw(pipeline, labels, options.num, sampling, seen)
    out = Path(options.out) if options.out else directory.samples
    names = [pipeline.class_names[label] for label in labels]
    _save(images, out, names, options.num, sampling.seed)
    if options.animate:
        save_gif([labelled_grid(frame, options.num, names) for frame in _frames(pipeline, parts)], out / "sampled.gif")
    grids = "sampled.png and sampled.gif" if options.animate else "sampled.png"
    print(f"{len(images)} images, {grids} in {out}; other guidance: --sampling.cfg_scale 3")
    return 0


def _draw(
    pipeline: AiMPipeline,
    labels: list[int],
    num: int,
    sampling: SamplingOptions,
    seen: Callable[[int, Tensor], None] | None,
) -> Tensor:
    """All images; progress by codes, since one batch may be all there is. `seen` is told of every step."""
    import torch

    wanted = torch.tensor(labels).repeat_interleave(num)
    sampling = pipeline.resolve(sampling)
    sampling = replace(sampling, batch_size=min(sampling.batch_size, len(wanted)))
    blocks = -(-len(wanted) // sampling.batch_size)
    with ProgressBar("sampling", blocks * pipeline.aim.config.num_tokens, "steps") as report:

        def on_step(step: int, codes_BT: Tensor) -> None:
            report.advance(1)
            if seen is not None:
                seen(step, codes_BT)

        return pipeline.generate(wanted, on_step=on_step, **sampling.options())


def _frames(pipeline: AiMPipeline, parts: list[Tensor]) -> list[Tensor]:
    """Images of all batches after each row of codes, from those of batch after batch."""
    import torch

    rows = pipeline.tokenizer.grid[0]
    return [torch.cat(parts[row::rows]) for row in range(rows)]


def _save(images: torch.Tensor, out: Path, names: list[str], num: int, seed: int) -> None:
    from aim_lightning.utils.grid import labelled_grid, save_png

    for i, image in enumerate(images):
        name = names[i // num].replace("/", "-").replace(" ", "-")
        save_png(image, out / f"{name}-seed{seed}-{i:05d}.png")
    save_png(labelled_grid(images, num, names), out / "sampled.png")
