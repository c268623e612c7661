"""`aim-lightning tokenize`: pictures to token shards."""

import argparse
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from aim_lightning.cli.build import device, run_directory
from aim_lightning.config import Document
from aim_lightning.data.images.datamodule import ImageDataModule
from aim_lightning.data.tokens.write import TokenizeOptions, write_token_shards
from aim_lightning.runs.load import load_tokenizer
from aim_lightning.utils.errors import UserError


def run(document: Document, options: argparse.Namespace) -> int:
    """Encodes train and val with the tokenizer of this run (or of `tokenizer:`) into data.out."""
    values, directory = document.values, run_directory(document)
    data = _image_data(values["data"])
    tokenizer = load_tokenizer(values["tokenizer"] or directory.path).to(device())
    out = Path(data.out or f"data/tokens/{directory.experiment}")
    how = TokenizeOptions(options.views, options.rows_per_shard, options.batch_size)
    data.setup("fit")
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32: TF32 changes about one code in a hundred
    for split, pictures in data.sets.items():
        with _progress() as bar:
            task = bar.add_task(f"tokenizing {split}", total=len(pictures))
            # A network sees a mirrored validation picture as another one: one view is enough there.
            split_how = how if split == "train" else TokenizeOptions("center", how.rows_per_shard, how.batch_size)
            write_token_shards(
                pictures,
                tokenizer,
                out / split,
                split_how,
                lambda n, b=bar, t=task: b.advance(t, n),
                device(),
            )
    print(f"token shards: {out}/train and {out}/val\nnext: set data.path to {out} in an AiM experiment and train it")
    return 0


def _image_data(section: dict) -> ImageDataModule:
    if section.get("class_path") != "aim_lightning.data.images.datamodule.ImageDataModule":
        raise UserError(f"tokenize needs pictures: data.class_path is {section.get('class_path')}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ImageDataModule, "data")
    return parser.instantiate_classes(parser.parse_object({"data": section.get("init_args") or {}}))["data"]


def _progress() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())


class Speed(ProgressColumn):
    """Pictures a second so far."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} images/s" if task.speed else "")
