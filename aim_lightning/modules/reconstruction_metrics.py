"""Metrics of reconstructions on the validation set, over all ranks."""

from torch import Tensor, nn
from torchmetrics import MeanMetric, SumMetric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from aim_lightning.losses import LossTerms
from aim_lightning.metrics import metric_name
from aim_lightning.metrics.lpips import PerceptualDistance
from aim_lightning.models.vq.model import Reconstruction
from aim_lightning.modules.codebook import CodeCounts, perplexity, usage


class ReconstructionScores(nn.Module):
    """PSNR, SSIM, the loss and codebook usage, and LPIPS if given.

    PSNR is that of the mean squared error over all images. PSNR, SSIM and LPIPS are computed in [-1, 1], to which
    reconstructions are clamped.

    Args:
        codebook_size: number of codes.
        perceptual: LPIPS, or None.
    """

    def __init__(self, codebook_size: int, perceptual: PerceptualDistance | None) -> None:
        super().__init__()
        self.perceptual = perceptual
        means = ("loss", "reconstruction", *(["lpips"] if perceptual else []))
        # Weighted by rows: the last batch of a rank may be smaller.
        self.means = nn.ModuleDict({name: MeanMetric() for name in means})
        self.psnr = PeakSignalNoiseRatio(data_range=2.0)
        self.ssim = StructuralSimilarityIndexMeasure(data_range=2.0)
        self.counts = CodeCounts(codebook_size)
        self.image_count = SumMetric()

    def update(self, images: Tensor, result: Reconstruction, terms: LossTerms) -> None:
        """Add a batch.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            result: output of the tokenizer.
            terms: its loss.
        """
        reconstructions, rows = result.images_BCHW.float().clamp(-1, 1), len(images)
        self.psnr.update(reconstructions, images)
        self.ssim.update(reconstructions, images)
        self.means["loss"].update(terms.loss, weight=rows)
        self.means["reconstruction"].update(terms.each["reconstruction"], weight=rows)
        if self.perceptual:
            self.means["lpips"].update(self.perceptual(reconstructions, images).mean(), weight=rows)
        self.counts.update(result.quantized.codes_BL)
        self.image_count.update(rows)

    def compute(self) -> dict[str, Tensor]:
        """Return the values over all batches and ranks; a collective."""
        metrics = {"psnr": self.psnr, "ssim": self.ssim, **self.means}
        values = {name: metric.compute() for name, metric in metrics.items()}
        counts = self.counts.compute()
        return values | {"codebook_usage": usage(counts), "codebook_perplexity": perplexity(counts)}

    def named(self, raw: bool) -> dict[str, Tensor]:
        """Return the metrics of results.json, with the number of images in their names, such as lpips_50k_raw.

        Args:
            raw: True if the network's weights are no moving average.
        """
        values, count = self.compute(), int(self.image_count.compute())
        return {metric_name(name, count, raw): values[name] for name in ("psnr", "ssim", "lpips") if name in values}

    def reset(self) -> None:
        """Remove all accumulated batches."""
        for metric in (self.psnr, self.ssim, self.counts, self.image_count, *self.means.values()):
            metric.reset()
