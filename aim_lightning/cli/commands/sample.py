"""`aim-lightning sample`: generate images with a trained run."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aim_lightning.cli.common_options import add_shared, choose_classes, flag, number, option
from aim_lightning.cli.config import Config
from aim_lightning.runs.directory import newest_checkpoint
from aim_lightning.utils.progress import ProgressBar

if TYPE_CHECKING:
    from torch import Tensor

    from aim_lightning.pipeline import AiMPipeline
    from aim_lightning.sampling import SamplingOptions

HELP = "generate images with a trained run"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    classes = 'classes by name or number, "sneaker,bag" (default: the first 10)'
    parser.add_argument("--classes", metavar="NAMES", help=classes)
    parser.add_argument("--num", **option("images per class", 8, type=number(int, 1, 100_000)))
    parser.add_argument("--out", help="directory for the images (default: runs/EXPERIMENT/RUN/samples)")
    add_shared(parser, "raw", "allow_untrained_guidance")
    parser.add_argument("--animate", **flag("also write an animation (GIF), in which the images appear row by row"))


def run(config: Config, options: argparse.Namespace) -> int:
    """Write a PNG per image and one grid with a row per class; with --animate also an animation of the grid."""
    import torch

    from aim_lightning.pipeline import load, load_tokenizer
    from aim_lightning.utils.grid import labelled_grid, save_gif, save_png

    directory, source, sampling = config.run_directory, config.values["tokenizer"], config.sampling
    checkpoint = newest_checkpoint(directory.path)
    pipeline = load(
        checkpoint,
        raw=options.raw,
        tokenizer=load_tokenizer(source) if source else None,
        backend=config.init_args("model").get("backend", "auto"),
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        allow_untrained_guidance=options.allow_untrained_guidance,
    )
    labels = choose_classes(options.classes, pipeline.class_names)
    parts: list[Tensor] = []
    preview = pipeline.preview(lambda images: parts.append(images.cpu())) if options.animate else None
    images = _generate(pipeline, torch.tensor(labels).repeat_interleave(options.num), sampling, preview)
    out = Path(options.out) if options.out else directory.samples
    weights = f"{checkpoint.stem}-raw" if options.raw else checkpoint.stem
    tag = _unused(out, f"{weights}-cfg{sampling.cfg_scale:g}-seed{sampling.seed}")
    grids = f"sampled-{tag}.png"
    names = [pipeline.class_names[label] for label in labels]
    for i, image in enumerate(images):
        # A class name may contain a slash, a file name must not.
        name = names[i // options.num].replace("/", "-").replace(" ", "-")
        save_png(image, out / f"{name}-{tag}-{i:05d}.png")
    save_png(labelled_grid(images, options.num, names), out / grids)
    if options.animate:
        # Previews come batch after batch, and within a batch after each row of codes.
        rows = pipeline.tokenizer.grid[0]
        frames = [torch.cat(parts[row::rows]) for row in range(rows)]
        save_gif([labelled_grid(frame, options.num, names) for frame in frames], out / f"sampled-{tag}.gif")
        grids += f" and sampled-{tag}.gif"
    print(f"{len(images)} images, {grids} in {out}; other guidance: --sampling.cfg_scale 3")
    return 0


def _unused(directory: Path, name: str) -> str:
    """Return a name without a grid in the directory, numbered from the second call on: no image is overwritten."""
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(tag for tag in names if not (directory / f"sampled-{tag}.png").exists())


def _generate(
    pipeline: AiMPipeline, labels: Tensor, sampling: SamplingOptions, preview: Callable[[int, Tensor], None] | None
) -> Tensor:
    """Generate all images with a progress bar over codes, since all images may be one batch."""
    sampling = pipeline.resolve(sampling)
    sampling = replace(sampling, batch_size=min(sampling.batch_size, len(labels)))
    batches = -(-len(labels) // sampling.batch_size)
    with ProgressBar("sampling", batches * pipeline.aim.config.num_tokens, "steps") as bar:

        def on_step(step: int, codes_BT: Tensor) -> None:
            bar.advance(1)
            if preview is not None:
                preview(step, codes_BT)

        return pipeline.generate(labels, on_step=on_step, **sampling.options())
