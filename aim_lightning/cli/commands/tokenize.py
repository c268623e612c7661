"""`aim-lightning tokenize`: turn images into token shards."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aim_lightning.cli.common_options import flag, number, numbers
from aim_lightning.cli.config import Config
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import log, log_next
from aim_lightning.utils.process import ProcessRank
from aim_lightning.utils.progress import ProgressBar

if TYPE_CHECKING:
    from aim_lightning.data.tokens.write.tokenize_job import TokenizeJob

HELP = "turn images into token shards with a trained tokenizer"
UNUSED = ("model",)


@dataclass(frozen=True)
class TokenizeSection:
    """The section `tokenize`: defaults of the command's options.

    Args:
        views: stored versions of each training image: center, center_flip (2) or ten_crop (10 per crop range).
        crop_range: of ten_crop: shorter sides to crop from, in image sizes; two of them give 20 views. null = 1.1.
        rows_per_shard: images per shard, the unit of work of a process.
        batch_size: images per batch; 64 need 11 GiB for VQ-16 in float32, and 256 are faster on a larger GPU.
        precision: float32 (exact), tf32 or bf16; faster ones change some codes.
        compile: True to fuse the encoder with torch.compile, which takes a minute at the start.
        on_error: action at an unreadable image: error stops, skip leaves it out and lists it.
    """

    views: str = "center"
    crop_range: list[float] | None = None
    rows_per_shard: int = 10000
    batch_size: int = 64
    precision: str = "float32"
    compile: bool = False
    on_error: str = "error"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option per key of the section `tokenize`, with the text of its docstring."""
    # One text for both places: the docstring is the help of the section, too.
    texts = dict(re.findall(r"^ +(\w+): (.*)\.$", TokenizeSection.__doc__, re.MULTILINE))
    arguments = {name: {"type": number(int, 1)} for name in ("rows_per_shard", "batch_size")}
    arguments |= {"crop_range": {"type": numbers, "metavar": "NUMBERS"}, "compile": flag("", None)}
    arguments |= {"on_error": {"choices": ("error", "skip")}}
    for name, default in asdict(TokenizeSection()).items():
        text = f"{texts[name]} (default: tokenize.{name}, else {default})"
        parser.add_argument(f"--{name}", **arguments.get(name, {}) | {"help": text})


def run(config: Config, options: argparse.Namespace) -> int:
    """Encode train and val with the tokenizer of this run, or of `tokenizer:`, into data.out."""
    from aim_lightning.cli.multiprocess import device_of, rank_or_launch
    from aim_lightning.data.images.datamodule import ImageDataModule
    from aim_lightning.data.tokens.format.tokenize_options import TokenizeOptions, Views
    from aim_lightning.data.tokens.write.tokenize_job import TokenizeJob
    from aim_lightning.pipeline import load_tokenizer
    from aim_lightning.utils.instantiate import build_object

    directory, settings = config.run_directory, _settings(config, options)
    views = Views(settings.pop("views"), settings.pop("crop_range"))
    train = TokenizeOptions(views, **settings)
    # Validation needs one view per image; a mirrored copy would count as another image.
    splits = {"train": train, "val": replace(train, views=Views())}
    process = rank_or_launch(config.trainer)
    if isinstance(process, int):
        return process
    if config.class_name("data") != "ImageDataModule":
        raise UserError(f"tokenize needs images: data.class_path is {config.values['data'].get('class_path')}")
    device, data = device_of(process, config.trainer), build_object(config.values["data"], ImageDataModule, "data")
    tokenizer = load_tokenizer(config.values["tokenizer"] or directory.path).to(device)
    out = Path(data.out or f"data/tokens/{directory.experiment}")
    data.setup("fit")
    # Create both jobs first, so that an error in val appears before hours of work on train.
    jobs = {
        split: TokenizeJob(images, tokenizer, out / split, splits[split], process, device, data.num_workers)
        for split, images in data.sets.items()
    }
    pending = any(job.unfinished for job in jobs.values())
    for split, job in jobs.items():
        _run(job, split, process)
    # Checked at the end: other processes may have finished a split meanwhile.
    if not all(job.complete() for job in jobs.values()):
        log("this process's shards are finished; the process that finishes last writes the manifests")
    elif pending or process.rank == 0:
        state = "" if pending else " (already complete)"
        print(f"token shards: {out}/train and {out}/val{state}")
        log_next(f"make shards ARGS='verify {out}', then train an AiM experiment with data.path {out}")
    return 0


def _settings(config: Config, options: argparse.Namespace) -> dict:
    """Return the section `tokenize` with the options of the command line, which take precedence."""
    section = dict(config.values.get("tokenize") or {})
    if options.views:
        section.pop("crop_range", None)  # crop_range of the section applies only to the views of the section
    names = asdict(TokenizeSection())
    return names | section | {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _run(job: TokenizeJob, split: str, process: ProcessRank) -> None:
    title = f"tokenizing {split}" + (f", process {process.rank + 1} of {process.world}" if process.world > 1 else "")
    finished = job.rows - sum(shard.rows for shard in job.unfinished)
    with ProgressBar(title, job.rows, done=finished, shown=process.rank == 0, leave=True) as bar:
        manifest = job.run(bar.advance)
    if manifest and manifest.skipped:
        count, first = len(manifest.skipped), manifest.skipped[0].key
        print(f"{split}: {count} unreadable images left out (first: {first}); {job.out}/manifest.json lists them")
