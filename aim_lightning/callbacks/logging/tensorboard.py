"""What TensorBoard shows besides the curves: configuration, page layout, images."""

import os
from pathlib import Path

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from aim_lightning.callbacks.logging.tensorboard_writer import RunWriter
from aim_lightning.utils.files import tolerate_disk_errors

LAYOUT = {
    "training": {
        "loss": ["Multiline", ["train/loss", "val/loss"]],
        "bits per code": ["Multiline", ["train/bits_per_code", "val/bits_per_code"]],
        "learning rate": ["Multiline", ["train/learning_rate"]],
        "gradient norm": ["Multiline", ["train/grad_norm", "train/grad_norm_discriminator"]],
    },
    "tokenizer": {
        "loss terms": [
            "Multiline",
            ["train/reconstruction", "train/perceptual", "train/codebook", "train/commitment", "train/entropy"],
        ],
        "adversarial": ["Multiline", ["train/generator", "train/discriminator", "train/adaptive_weight"]],
        "logits": ["Multiline", ["train/logits_real", "train/logits_fake"]],
        "PSNR": ["Multiline", ["val/psnr"]],
        "SSIM and LPIPS": ["Multiline", ["val/ssim", "val/lpips"]],
        "codebook usage": ["Multiline", ["train/codebook_usage", "val/codebook_usage"]],
        "codebook perplexity": ["Multiline", ["train/codebook_perplexity", "val/codebook_perplexity"]],
    },
    "samples": {
        "Fréchet distance": ["Multiline", ["metrics/r?fd_.*", "metrics/r?fid_.*"]],
        "class agreement": ["Multiline", ["metrics/class_agreement_.*"]],
    },
    "speed": {
        "images/s": ["Multiline", ["perf/images_per_s"]],
        "tokens/s": ["Multiline", ["perf/tokens_per_s"]],
        "model TFLOP/s": ["Multiline", ["perf/model_tflops_per_s"]],
    },
}


def own_writer(logger: TensorBoardLogger, purge_step: int | None) -> None:
    """Let the logger write an event file of ours, which bears a full disk.

    Args:
        purge_step: TensorBoard forgets what earlier files say from this step on; None = nothing.
    """
    known = {name: value for name, value in logger._kwargs.items() if name in ("flush_secs", "filename_suffix")}
    logger._experiment = RunWriter(logger.log_dir, purge_step, **known)


def writer(trainer: Trainer) -> SummaryWriter | None:
    """The TensorBoard writer of rank 0; None elsewhere or without such a logger."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            return logger.experiment
    return None


def flush(trainer: Trainer) -> None:
    """Put what was logged so far on disk, where the loss of the machine cannot reach it."""
    experiment = writer(trainer)
    if experiment is None:
        return
    experiment.flush()
    newest = max(Path(experiment.log_dir).glob("events.out.tfevents.*"), default=None)
    if newest is not None:
        with tolerate_disk_errors(newest), newest.open("rb") as file:
            os.fsync(file.fileno())


def show_image(trainer: Trainer, tag: str, image_CHW: Tensor) -> None:
    """Add a uint8 image at the current step."""
    experiment = writer(trainer)
    if experiment is not None:
        experiment.add_image(tag, image_CHW, trainer.fit_loop.epoch_loop._batches_that_stepped)


def show_histogram(trainer: Trainer, tag: str, values: Tensor) -> None:
    """Add the distribution of values at the current step."""
    experiment = writer(trainer)
    if experiment is not None:
        experiment.add_histogram(tag, values.float().cpu(), trainer.fit_loop.epoch_loop._batches_that_stepped)


class TensorBoardPage(Callback):
    """The composed configuration as text and a custom-scalars page that puts together what belongs together."""

    def __init__(self) -> None:
        self.configuration: dict = {}

    needs = ("configuration",)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        experiment = writer(trainer)
        if experiment is not None:
            text = yaml.safe_dump(self.configuration, sort_keys=False, allow_unicode=True)
            experiment.add_text("configuration", f"```yaml\n{text}```", trainer.global_step)
            experiment.add_custom_scalars(LAYOUT)
