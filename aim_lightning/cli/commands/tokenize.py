"""`aim-lightning tokenize`: images to token shards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from aim_lightning.cli.common_options import add_on_error, boolean, numbers
from aim_lightning.cli.config import Config
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import log
from aim_lightning.utils.process import ProcessRank
from aim_lightning.utils.progress import ProgressBar

if TYPE_CHECKING:
    from aim_lightning.data.images.datamodule import ImageDataModule
    from aim_lightning.data.tokens.format.tokenize_options import TokenizeOptions
    from aim_lightning.data.tokens.write.tokenize_job import TokenizeJob

HELP = "turn images into token shards with a trained tokenizer"
UNUSED = ("model",)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    views = "stored versions of each training image: center, center_flip (2), or ten_crop (10 per crop range)"
    parser.add_argument("--views", default="center", help=f"{views} (default: center)")
    ranges = "of ten_crop: shorter sides to crop from, in image sizes; 1.1,1.05 gives 20 views (default: 1.1)"
    parser.add_argument("--crop_range", type=numbers, metavar="NUMBERS", help=ranges)
    shards = "images per shard, the unit of work of a process (default: 10000)"
    parser.add_argument("--rows_per_shard", type=int, default=10000, help=shards)
    batch = "images per batch (default: 64, 11 GiB for VQ-16 in float32); 256 is faster on a larger GPU"
    parser.add_argument("--batch_size", type=int, default=64, help=batch)
    precision = "float32 (exact), tf32 or bf16; faster ones change some codes (default: float32)"
    parser.add_argument("--precision", default="float32", help=precision)
    fused = "fuse the encoder with torch.compile, a minute at the start (default: false)"
    parser.add_argument("--compile", type=boolean, default=False, metavar="BOOL", help=fused)
    add_on_error(parser)


def run(document: Config, options: argparse.Namespace) -> int:
    """Encodes train and val with the tokenizer of this run (or of `tokenizer:`) into data.out."""
    from aim_lightning.cli.build.trainer_cli import run_directory
    from aim_lightning.cli.multiprocess import device_of, rank_or_launch
    from aim_lightning.data.tokens.write.tokenize_job import TokenizeJob
    from aim_lightning.pipeline import load_tokenizer

    values, directory = document.values, run_directory(document)
    how = {split: _options(options, split) for split in ("train", "val")}
    place = rank_or_launch(values["trainer"])
    if isinstance(place, int):
        return place
    device, data = device_of(place, values["trainer"]), _image_data(values["data"])
    tokenizer = load_tokenizer(values["tokenizer"] or directory.path).to(device)
    out = Path(data.out or f"data/tokens/{directory.experiment}")
    data.setup("fit")
    jobs = {  # both before the first image: what is wrong with val is not to be told after hours of train
        split: TokenizeJob(images, tokenizer, out / split, how[split], place, device, data.num_workers)
        for split, images in data.sets.items()
    }
    worked = place.rank == 0 or any(job.unfinished for job in jobs.values())
    for split, job in jobs.items():
        _run(job, split, place)
    if not all(job.complete() for job in jobs.values()):  # asked at the end: others may have finished a split meanwhile
        log("this process's shards are finished; the process that finishes last writes the manifests")
    elif worked:
        print(f"token shards: {out}/train and {out}/val")
        print(f"next: make shards ARGS='verify {out}', then train an AiM experiment with data.path {out}")
    return 0


def _options(options: argparse.Namespace, split: str) -> TokenizeOptions:
    # A network sees a mirrored validation image as another one: one view is enough there.
    from aim_lightning.data.tokens.format.tokenize_options import TokenizeOptions, Views

    views = Views(options.views, options.crop_range) if split == "train" else Views()
    return TokenizeOptions(
        views, options.rows_per_shard, options.batch_size, options.precision, options.compile, options.on_error
    )


def _run(job: TokenizeJob, split: str, place: ProcessRank) -> None:
    title = f"tokenizing {split}" + (f", process {place.rank + 1} of {place.world}" if place.world > 1 else "")
    todo = sum(shard.rows for shard in job.unfinished)
    with ProgressBar(title, job.rows, done=job.rows - todo, shown=place.rank == 0, leave=True) as report:
        manifest = job.run(report.advance)
    if manifest and manifest.skipped:
        number, first = len(manifest.skipped), manifest.skipped[0].key
        print(f"{split}: {number} unreadable images left out (first: {first}); {job.out}/manifest.json lists them")


def _image_data(section: dict) -> ImageDataModule:
    from jsonargparse import ArgumentParser

    from aim_lightning.data.images.datamodule import ImageDataModule

    if section.get("class_path") != "aim_lightning.data.images.datamodule.ImageDataModule":
        raise UserError(f"tokenize needs images: data.class_path is {section.get('class_path')}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ImageDataModule, "data")
    return parser.instantiate_classes(parser.parse_object({"data": section.get("init_args") or {}}))["data"]
