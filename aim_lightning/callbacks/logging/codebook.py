"""Histograms of the codebook in TensorBoard: dead, crowded and doubled codes are seen there first."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from aim_lightning.callbacks.logging.tensorboard import show_histogram

ROWS_AT_A_TIME = 2048


class CodebookHistograms(Callback):
    """After each validation, one value a code of the (EMA) tokenizer.

    `codebook/uses`: log10 of 1 + how often the validation set chose it. `codebook/nearest_cosine`: cosine of the
    angle to the nearest other code; a heap at 1 means codes that do the same work.
    """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning calls it before the module's own, which forgets the counts; every rank takes part."""
        if trainer.sanity_checking:
            return
        counts = pl_module.scores.counts.compute()
        if trainer.is_global_zero:
            show_histogram(trainer, "codebook/uses", (counts + 1).log10())
            codes_VC = pl_module.network.quantize.codebook_VC.detach()
            show_histogram(trainer, "codebook/nearest_cosine", nearest_cosine(codes_VC))


def nearest_cosine(codes_VC: Tensor) -> Tensor:
    """For each unit vector the largest product with another one, (V,)."""
    best, rows = [], torch.arange(len(codes_VC), device=codes_VC.device)
    for part in rows.split(ROWS_AT_A_TIME):
        products = codes_VC[part] @ codes_VC.T
        products[part - part[0], part] = -1.0
        best.append(products.amax(1))
    return torch.cat(best)
