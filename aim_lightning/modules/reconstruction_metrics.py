"""Scores of reconstructions on the validation set, over all processes."""

from torch import Tensor, nn
from torchmetrics import MeanMetric, SumMetric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from aim_lightning.losses import LossTerms
from aim_lightning.metrics import metric_name
from aim_lightning.metrics.lpips import PerceptualDistance
from aim_lightning.models.vq.model import Reconstruction
from aim_lightning.modules.codebook import CodeCounts, perplexity, usage


class ReconstructionScores(nn.Module):
    """PSNR, SSIM, LPIPS where there is one, the loss, and codebook usage.

    PSNR is that of the mean squared error over all images, which are in [-1, 1]; reconstructions are clamped to it
    for PSNR, SSIM and LPIPS.

    Args:
        codebook_size: number of codes.
        perceptual: LPIPS, or None.
    """

    def __init__(self, codebook_size: int, perceptual: PerceptualDistance | None) -> None:
        super().__init__()
        self.perceptual = perceptual
        means = ("loss", "reconstruction", *(["lpips"] if perceptual else []))
        self.means = nn.ModuleDict({name: MeanMetric() for name in means})
        self.psnr = PeakSignalNoiseRatio(data_range=2.0)
        self.ssim = StructuralSimilarityIndexMeasure(data_range=2.0)
        self.counts = CodeCounts(codebook_size)
        self.image_count = SumMetric()

    def update(self, images: Tensor, result: Reconstruction, terms: LossTerms) -> None:
        """Add a batch: images, what the tokenizer made of them, its loss."""
        made, rows = result.images_BCHW.float().clamp(-1, 1), len(images)
        self.psnr.update(made, images)
        self.ssim.update(made, images)
        self.means["loss"].update(terms.loss, weight=rows)
        self.means["reconstruction"].update(terms.each["reconstruction"], weight=rows)
        if self.perceptual:
            self.means["lpips"].update(self.perceptual(made, images).mean(), weight=rows)
        self.counts.update(result.quantized.codes_BL)
        self.image_count.update(rows)

    def compute(self) -> dict[str, Tensor]:
        """Values over all batches of all processes; every process must call it."""
        metrics = {"psnr": self.psnr, "ssim": self.ssim, **self.means}
        values = {name: metric.compute() for name, metric in metrics.items()}
        counts = self.counts.compute()
        return values | {"codebook_usage": usage(counts), "codebook_perplexity": perplexity(counts)}

    def named(self, raw: bool) -> dict[str, Tensor]:
        """What results may be compared by, under names that say on how many images: psnr_10k, lpips_50k_raw.

        Args:
            raw: the network's weights are no moving average.
        """
        values, count = self.compute(), int(self.image_count.compute())
        return {metric_name(name, count, raw): values[name] for name in ("psnr", "ssim", "lpips") if name in values}

    def reset(self) -> None:
        """Forget everything."""
        for metric in (self.psnr, self.ssim, self.counts, self.image_count, *self.means.values()):
            metric.reset()
