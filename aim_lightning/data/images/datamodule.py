"""The DataModule of images, for training the tokenizer."""

import logging
from collections.abc import Iterator
from typing import Literal

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from aim_lightning.data.images.dataset import ImageDataset, Images, same_classes, transform_row
from aim_lightning.data.images.directory import ImageSource
from aim_lightning.data.images.transforms import ImageTransform
from aim_lightning.data.stream import BatchPlan
from aim_lightning.data.stream_datamodule import Batch, BatchLoader, MicroBatches, StreamDataModule
from aim_lightning.utils.process import reading
from aim_lightning.utils.random import hash_seed, permutation

log = logging.getLogger(__name__)


class ImageMicroBatches(MicroBatches):
    """Training stream of one rank: order by (seed, epoch), crop and flip by (seed, epoch, row)."""

    def __init__(self, source: ImageSource, transform: ImageTransform, plan: BatchPlan, rank: int, seed: int) -> None:
        super().__init__(len(source), plan, rank, seed)
        self.source = source
        self.transform = transform

    def read(self, positions: Iterator[slice]) -> Iterator[Batch]:
        """Yield one micro-batch per slice of the global order."""
        order = permutation(self.rows, "image_order", self.seed, self.epoch)
        info = get_worker_info()
        # One process reports, in the first epoch: the others read further parts of the same images.
        silent = self.rank > 0 or self.epoch > 0 or (info is not None and info.id > 0)
        for part in positions:
            rows = order[part]
            # One seed per image: its augmentation depends neither on the rank nor on the worker that reads it.
            seeds = [hash_seed("augmentation", self.seed, self.epoch, int(row)) for row in rows]
            pairs = zip(rows.tolist(), seeds, strict=True)
            transparent = self.source.transparent
            images = [transform_row(self.source, row, [self.transform], seed)[0] for row, seed in pairs]
            if (count := self.source.transparent - transparent) and not silent:
                fact = "have transparent pixels, composited on images.background"
                log.warning("data.images: %d of %d images of a micro-batch %s", count, len(rows), fact)
                silent = True
            yield {
                "images": torch.stack(images),
                "labels": torch.from_numpy(self.source.labels[rows]),
                "index": torch.from_numpy(rows),
                "epoch": torch.tensor(self.epoch),
            }


class ImageRows(Dataset):
    """Batches of a rank's share of a set in order; each image occurs once over all ranks."""

    def __init__(self, images: ImageDataset, batch_size: int, rank: int, world_size: int) -> None:
        self.images = images
        self.batch_size = batch_size
        self.rows = range(rank, len(images), world_size)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        rows = self.rows[number * self.batch_size : (number + 1) * self.batch_size]
        images, labels = self.images.batch(rows)
        return {"images": images, "labels": labels, "index": torch.tensor(list(rows))}


class ImageDataModule(StreamDataModule):
    """Images as uint8 batches; the LightningModule converts them to [-1, 1].

    Args:
        images: paths and size of the images.
        global_batch_size: images per optimizer step, over all devices.
        max_device_batch_size: largest micro-batch per device; larger batches are accumulated. null = no limit.
        val_batch_size: images per device and validation step.
        train_crop: ``center`` (the crop of `images`), ``random`` or ``adm_random``.
        flip: mirror each training image with probability 0.5.
        num_workers: loader processes per device.
        seed: seed of order, crops and flips.
        out: directory that `tokenize` writes; null = data/tokens/EXPERIMENT.
    """

    def __init__(
        self,
        images: Images,
        global_batch_size: int = 128,
        max_device_batch_size: int | None = None,
        val_batch_size: int = 64,
        train_crop: Literal["center", "random", "adm_random", "adm_center", "none"] = "center",
        flip: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        out: str | None = None,
    ) -> None:
        super().__init__(global_batch_size, max_device_batch_size, num_workers, seed)
        self.images = images
        self.val_batch_size = val_batch_size
        self.out = out
        crop = images.crop if train_crop == "center" else train_crop
        resize = None if crop == "adm_random" else images.resize  # adm_random includes its own resize
        self.train_transform = ImageTransform(images.image_size, resize=resize, pad=images.pad, crop=crop, flip=flip)
        self.sets: dict[str, ImageDataset] = {}

    def setup(self, stage: str) -> None:
        """Open both splits.

        Args:
            stage: ignored; Lightning passes it.

        Raises:
            UserError: a path is missing, or the classes differ.
        """
        with reading():
            self.sets = {split: self.images.open(split) for split in ("train", "val")}
        same_classes(self.sets["train"], self.sets["val"], "data.images")

    @property
    def train_rows(self) -> int:
        """Return the number of training images."""
        return len(self.sets["train"])

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the original training images, independent of the crop."""
        return self.sets["train"].source.fingerprint

    @property
    def class_names(self) -> list[str]:
        """Return class names by label."""
        return self.sets["train"].class_names

    def micro_batches(self, plan: BatchPlan, rank: int) -> MicroBatches:
        """Return the training stream of one rank."""
        return ImageMicroBatches(self.sets["train"].source, self.train_transform, plan, rank, self.seed)

    def val_dataloader(self) -> DataLoader:
        """Return the loader of this rank's validation images."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return BatchLoader(ImageRows(self.sets["val"], self.val_batch_size, rank, world), self.num_workers)
