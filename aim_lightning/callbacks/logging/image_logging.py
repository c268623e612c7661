"""Images in the loggers and in the run directory; `log_image` is the one interface to all loggers."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from aim_lightning.pipeline import AiMPipeline
from aim_lightning.utils.files import tolerate_disk_errors
from aim_lightning.utils.grid import labelled_grid, save_png
from aim_lightning.utils.lightning_private import logged_step
from aim_lightning.utils.logging import warn_once
from aim_lightning.utils.pixels import to_uint8, to_unit_range


def log_image(trainer: Trainer, tag: str, image_CHW: Tensor) -> None:
    """Add an image at the current step to every logger; does nothing on other ranks than 0.

    A CSVLogger gets a PNG file next to its table. Loggers without images are reported once.

    Args:
        trainer: its loggers: TensorBoard, CSVLogger, and those with a method `log_image`, such as WandbLogger.
        tag: name of the image.
        image_CHW: uint8 (3, H, W).
    """
    if not trainer.is_global_zero:
        return
    step = logged_step(trainer)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            # TensorBoard takes (3, H, W), loggers such as Weights & Biases take (H, W, 3).
            logger.experiment.add_image(tag, image_CHW, step)
        elif isinstance(logger, CSVLogger):
            _save(image_CHW, Path(logger.log_dir) / "images" / f"{tag}-step={step:08d}.png")
        elif hasattr(logger, "log_image"):
            logger.log_image(tag, [image_CHW.permute(1, 2, 0).numpy()], step=step)
        else:
            warn_once(f"{type(logger).__name__} logs no images; they are in the run directory, in samples/")


class Reconstructions(Callback):
    """Log rows of originals above their reconstructions by the (EMA) tokenizer after each validation.

    Args:
        num_images: evenly spaced validation images; all if there are fewer.
        columns: images per row.
    """

    needs = ("images", "run_dir")

    def __init__(self, num_images: int = 16, columns: int = 8) -> None:
        self.num_images, self.columns = num_images, columns

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        images = self.images.open("val")
        rows = torch.linspace(0, len(images) - 1, min(self.num_images, len(images))).round().long()
        originals, _ = images.batch(rows.tolist())
        # Through the codes, as in sampling: a reconstruction by the latent would look better.
        codes = pl_module.network.encode(to_unit_range(originals.to(pl_module.device)))
        columns = min(self.columns, len(originals))
        pairs = alternate_rows(originals, to_uint8(pl_module.network.decode(codes)).cpu(), columns)
        grid = labelled_grid(pairs, columns, ["original", "reconstruction"] * (len(pairs) // columns // 2))
        log_image(trainer, "reconstructions", grid)
        _save(grid, Path(self.run_dir) / "samples" / "reconstructions.png")


def alternate_rows(first_BCHW: Tensor, second_BCHW: Tensor, columns: int) -> Tensor:
    """Return a row of the first images, a row of the second ones, and so on; white images fill the last rows."""
    white = torch.full_like(first_BCHW[:1], 255).expand(-len(first_BCHW) % columns, -1, -1, -1)
    rows = [torch.cat((images, white)).unflatten(0, (-1, columns)) for images in (first_BCHW, second_BCHW)]
    return torch.stack(rows, 1).flatten(0, 2)


class SampleGrid(Callback):
    """Log samples of the (EMA) network after each validation: one row per class, the same seeds every time.

    Args:
        classes: largest number of rows, from label 0 on.
        columns: images per class.
        allow_untrained_guidance: sample with guidance although training had label_dropout 0 or 1.
    """

    needs = ("tokenizer", "sampling", "class_names", "run_dir")

    def __init__(self, classes: int = 10, columns: int = 8, allow_untrained_guidance: bool = False) -> None:
        self.classes, self.columns = classes, columns
        self.allow_untrained_guidance = allow_untrained_guidance

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        grid = self._generate(AiMPipeline(pl_module.network, self.tokenizer))
        log_image(trainer, "samples", grid)
        directory = Path(self.run_dir) / "samples"
        _save(grid, directory / "grid.png")
        if trainer.state.fn == "fit":  # in `validate`, the trainer's step is not that of the checkpoint
            _save(grid, directory / f"grid-step={trainer.global_step:08d}.png")

    def _generate(self, pipeline: AiMPipeline) -> Tensor:
        """Return the grid, uint8 (3, H, W); image k of the grid has index k."""
        rows = min(self.classes, pipeline.aim.config.num_classes)
        labels = torch.arange(rows).repeat_interleave(self.columns)
        # The block never exceeds the labels: a grid would otherwise be filled up with images that are not shown.
        block = min(pipeline.resolve(self.sampling).batch_size, len(labels))
        images = pipeline.generate(labels, **{**self.sampling.options(), "batch_size": block})
        return labelled_grid(images, self.columns, self.class_names[:rows])


def _save(grid: Tensor, path: Path) -> None:
    with tolerate_disk_errors(path):
        save_png(grid, path)
