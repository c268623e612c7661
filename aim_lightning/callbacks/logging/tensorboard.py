"""TensorBoard beyond curves: the configuration, hparams, the page of related curves, and histograms."""

import os
import re
from functools import reduce
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from aim_lightning.callbacks.logging.throughput import peak_tflops_of
from aim_lightning.utils.files import tolerate_disk_errors
from aim_lightning.utils.lightning_private import logged_step

CHARTS, HPARAMS = (
    yaml.safe_load(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    for name in ("charts.yaml", "hparams.yaml")
)
LAYOUT_TAG = b"custom_scalars__config__"
CODES_AT_A_TIME = 2048


def writer(trainer: Trainer) -> SummaryWriter | None:
    """Return rank 0's TensorBoard writer; None on other ranks or without such a logger."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            return logger.experiment
    return None


def flush(trainer: Trainer) -> None:
    """Write everything logged so far to disk, so that a crash of the machine cannot lose it."""
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger):
            logger.save()
    experiment = writer(trainer)
    if experiment is None:
        return
    experiment.flush()
    # A flush of the writer reaches the page cache only; fsync reaches the disk.
    newest = max(Path(experiment.log_dir).glob("events.out.tfevents.*"), default=None)
    if newest is not None:
        with tolerate_disk_errors(newest), newest.open("rb") as file:
            os.fsync(file.fileno())


class TensorBoardPage(Callback):
    """Log the configuration as text, the main options as hparams, and a custom-scalars page, once per run.

    In `validate` the page is logged again with the charts of its scores.
    """

    needs = ("configuration",)

    def __init__(self) -> None:
        self.configuration: dict = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        experiment = writer(trainer)
        if experiment is not None and not _has_page(Path(experiment.log_dir)):
            text = yaml.safe_dump(self.configuration, sort_keys=False, allow_unicode=True)
            experiment.add_text("configuration", f"```yaml\n{text}```", trainer.global_step)
            for summary in _hparams(self.configuration, sum(p.numel() for p in pl_module.network.parameters())):
                experiment.file_writer.add_summary(summary)
            experiment.add_custom_scalars(_layout(_parts(trainer, pl_module)))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the charts of scores that only `validate` computes; TensorBoard shows the last page."""
        experiment = writer(trainer)
        if experiment is not None and trainer.state.fn == "validate":
            experiment.add_custom_scalars(_layout(_parts(trainer, pl_module)))


def _has_page(directory: Path) -> bool:
    """Return True if an earlier start has logged the page, which it does among its first events."""
    for path in directory.glob("events.out.tfevents.*"):
        with tolerate_disk_errors(path), path.open("rb") as file:
            # The page is among the first events: the first MiB is enough.
            if LAYOUT_TAG in file.read(1 << 20):
                return True
    return False


def _hparams(configuration: dict, parameters: int) -> list:
    """Return the summaries of the columns of the HPARAMS tab and of the run's values, which must be numbers."""
    # TensorBoard takes the columns from any one of the runs, so every run writes the columns of both stages.
    columns, _, _ = hparams(dict.fromkeys(["parameters", *HPARAMS["options"]], 0), dict.fromkeys(HPARAMS["metrics"], 0))
    values = {"parameters": parameters}
    for name, key in HPARAMS["options"].items():
        value = reduce(lambda v, part: v.get(part) if isinstance(v, dict) else None, key.split("."), configuration)
        if isinstance(value, int | float):
            values[name] = value
    return [columns, hparams(values, {})[1]]


def _parts(trainer: Trainer, pl_module: LightningModule) -> SimpleNamespace:
    """Return what `needs` of a chart refers to."""
    callbacks = SimpleNamespace(**{type(callback).__name__: callback for callback in trainer.callbacks})
    validated = callbacks if trainer.state.fn == "validate" else None
    peak = peak_tflops_of(pl_module.device)
    return SimpleNamespace(model=pl_module, callbacks=callbacks, validated=validated, peak_tflops=peak)


def _layout(parts: SimpleNamespace) -> dict[str, dict[str, list]]:
    """Return page -> chart -> type and regular expressions of its curves, for the parts that the run has."""
    pages = {
        page: {name: chart["tags"] for name, chart in charts.items() if _is_present(parts, chart)}
        for page, charts in CHARTS.items()
    }
    # TensorBoard matches the start of a tag: train/codebook alone would also select train/codebook_usage.
    return {
        page: {
            name: ["Multiline", [tag if "*" in tag else f"{re.escape(tag)}$" for tag in tags]]
            for name, tags in charts.items()
        }
        for page, charts in pages.items()
        if charts
    }


def _is_present(parts: SimpleNamespace, chart: dict[str, list[str]]) -> bool:
    """Return True if the run has one of the parts that a chart needs, none of which is null, 0 or False."""
    keys = [key.split(".") for key in chart.get("needs", [])]
    return not keys or any(reduce(lambda part, name: getattr(part, name, None), key, parts) for key in keys)


class CodebookHistograms(Callback):
    """Log histograms over the codes of the (EMA) tokenizer after each validation.

    `codebook/uses`: log10 of 1 + how often the validation set used the code. `codebook/nearest_cosine`: cosine of the
    angle to the nearest other code; values near 1 are redundant codes.
    """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        # A collective, hence on every rank. The hook of the module, which resets the counts, comes after this one.
        counts = pl_module.scores.counts.compute()
        experiment = writer(trainer)
        if experiment is not None:
            cosines = nearest_cosine(pl_module.network.quantize.codebook_VC.detach())
            for name, values in (("uses", (counts + 1).log10()), ("nearest_cosine", cosines)):
                experiment.add_histogram(f"codebook/{name}", values.float().cpu(), logged_step(trainer))


def nearest_cosine(codes_VC: Tensor) -> Tensor:
    """Return for each unit vector the largest product with another one, (V,)."""
    largest, rows = [], torch.arange(len(codes_VC), device=codes_VC.device)
    for part in rows.split(CODES_AT_A_TIME):  # bounds the products held at once
        products = codes_VC[part] @ codes_VC.T
        products[part - part[0], part] = -1.0  # a code is no neighbour of itself
        largest.append(products.amax(1))
    return torch.cat(largest)
