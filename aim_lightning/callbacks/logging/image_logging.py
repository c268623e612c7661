"""Images in TensorBoard and in the run directory: one sees a model learn before a number says so."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.callbacks.logging.tensorboard import show_image
from aim_lightning.pipeline import AiMPipeline
from aim_lightning.sampling.options import SamplingOptions
from aim_lightning.utils.files import tolerate_disk_errors
from aim_lightning.utils.grid import labelled_grid, save_png
from aim_lightning.utils.pixels import to_uint8, to_unit_range


class Reconstructions(Callback):
    """After each validation: originals above their reconstructions by the (EMA) tokenizer.

    Args:
        num_images: the first so many validation images, all where there are fewer.
    """

    needs = ("images", "run_dir")

    def __init__(self, num_images: int = 16) -> None:
        self.num_images = num_images

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        images = self.images.open("val")
        originals, _ = images.batch(range(min(self.num_images, len(images))))
        codes = pl_module.network.encode(to_unit_range(originals.to(pl_module.device)))
        both = torch.cat((originals, to_uint8(pl_module.network.decode(codes)).cpu()))
        grid = labelled_grid(both, len(originals), ["original", "reconstruction"])
        show_image(trainer, "reconstructions", grid)
        _keep(grid, Path(self.run_dir) / "samples" / "reconstructions.png")


class SampleGrid(Callback):
    """After each validation: a row a class, the same seeds every time, drawn from the (EMA) network.

    Args:
        classes: at most so many classes, from label 0 on.
        columns: images a class.
    """

    needs = ("tokenizer", "sampling", "class_names", "run_dir")

    def __init__(self, classes: int = 10, columns: int = 8) -> None:
        self.classes, self.columns = classes, columns

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        grid = sample_grid(
            pl_module.network, self.tokenizer, self.sampling, self.class_names, self.classes, self.columns
        )
        show_image(trainer, "samples", grid)
        directory = Path(self.run_dir) / "samples"
        _keep(grid, directory / "grid.png")
        if trainer.state.fn == "fit":  # `validate` knows no step
            _keep(grid, directory / f"grid-step={trainer.global_step:08d}.png")


def _keep(grid: torch.Tensor, path: Path) -> None:
    with tolerate_disk_errors(path):
        save_png(grid, path)


def sample_grid(network, tokenizer, sampling: SamplingOptions, class_names, classes: int, columns: int):
    """uint8 image: one row a class, image k of the grid drawn with index k."""
    rows = min(classes, network.config.num_classes)
    labels = torch.arange(rows).repeat_interleave(columns)
    pipeline = AiMPipeline(network, tokenizer)
    block = min(pipeline.resolve(sampling).batch_size, len(labels))
    images = pipeline.generate(labels, **{**sampling.options(), "batch_size": block})
    return labelled_grid(images, columns, class_names[:rows])
