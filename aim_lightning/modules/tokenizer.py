"""Stage 1: the VQ tokenizer learns to reconstruct images through a codebook."""

from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.amp import GradScaler
from torch.nn.functional import mse_loss
from torch.optim import Optimizer

from aim_lightning.losses import LossTerms, TokenizerLoss
from aim_lightning.metrics.lpips import PerceptualDistance
from aim_lightning.models import PatchGAN, VQConfig, VQModel
from aim_lightning.models.vq.model import Reconstruction
from aim_lightning.modules.adversary import AdversarialConfig, Adversary
from aim_lightning.modules.codebook import RevivalConfig, perplexity, revive, usage
from aim_lightning.modules.finite_steps import FiniteSteps
from aim_lightning.modules.optim import (
    OptimizerConfig,
    StepMeans,
    build_optimizer,
    check_finite,
    check_scale,
    check_warmup,
    clip_gradients,
    total_steps,
)
from aim_lightning.modules.reconstruction_metrics import ReconstructionScores
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.pixels import to_unit_range
from aim_lightning.utils.precision import exact_float32
from aim_lightning.utils.random import hash_seed
from aim_lightning.utils.ranges import Range, check_arguments


class TokenizerModule(LightningModule):
    """Trains a VQModel with manual optimization, since the discriminator has its own optimizer.

    A global step is a step of the tokenizer; those of the discriminator are not counted.

    Args:
        network: sizes of the tokenizer.
        optimizer: AdamW and its schedule.
        global_batch_size: images per optimizer step; set it by interpolation from the data section.
        loss: terms and their weights.
        adversarial: discriminator and adversarial loss; null = none.
        gradient_clip: largest L2 norm of the tokenizer's gradient; null or 0 = no clipping.
        gradient_checkpointing: store fewer activations of encoder and decoder and recompute them in the backward pass.
        codebook_init: ``random``, or ``data`` to start the codebook from the first batch's latents.
        revival: steps at which unused codes are set to latents.
        init_from: weights that a new run starts from: a run, a checkpoint, or a published file (read by the command).
        lpips_file: torchvision's VGG16 weights, for LPIPS in validation if the loss has none; null = no LPIPS.
        channels_last: memory format of the convolutions.
        seed: of codebook_init ``data`` and of revivals.

    Raises:
        UserError: a number out of range, or options that contradict each other.
    """

    def __init__(
        self,
        network: VQConfig,
        optimizer: OptimizerConfig,
        global_batch_size: int,
        loss: TokenizerLoss,
        adversarial: AdversarialConfig | None = None,
        gradient_clip: float | None = 1.0,
        gradient_checkpointing: bool = False,
        codebook_init: Literal["random", "data"] = "random",
        revival: RevivalConfig = RevivalConfig(),  # noqa: B008 (frozen)
        init_from: str | None = None,
        lpips_file: str | None = None,
        channels_last: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_arguments("model.", TokenizerModule.__init__, locals(), global_batch_size=Range(1))
        self.automatic_optimization = False
        if init_from and codebook_init == "data":
            raise UserError("model.init_from brings a codebook; set model.codebook_init random")
        if lpips_file and loss.perceptual_weight:
            raise UserError("model.lpips_file is for a loss without LPIPS; set it null: validation has the loss's own")
        self.network = VQModel(network)
        self.network.checkpoint_gradients(gradient_checkpointing)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.optimizer_config, self.global_batch_size, self.loss = optimizer, global_batch_size, loss
        self.gradient_clip, self.codebook_init, self.seed = gradient_clip, codebook_init, seed
        self.revival, self.init_from = revival, init_from
        self.grad_norm: Tensor | None = None  # of the current step, before clipping
        self.means, self.finite_steps = StepMeans(), FiniteSteps(optimizer)
        vgg = loss.perceptual_file if loss.perceptual_weight else lpips_file
        self.perceptual = PerceptualDistance(vgg) if vgg else None
        self.adversary = self._make_adversary(adversarial)
        self.to(memory_format=self.memory_format)
        # Equal on all ranks without DDP, which would broadcast the record of used codes at every step.
        ignored = [name for name in self.state_dict() if name.startswith("discriminator.")]
        # Private in torch: DDP reads this attribute when it wraps the module.
        self._ddp_params_and_buffers_to_ignore = ["network.quantize.codebook_used", *ignored]
        self.scores = ReconstructionScores(self.network.codebook_size, self.perceptual)

    def _make_adversary(self, config: AdversarialConfig | None) -> Adversary | None:
        if config is None:
            return None
        size = self.network.image_size
        if config.discriminator.patches(size) < 1:
            raise UserError(
                f"model.adversarial.discriminator.num_layers {config.discriminator.num_layers} leaves no patch of "
                f"{size}x{size} pixels; set fewer layers"
            )
        self.discriminator = PatchGAN(config.discriminator)
        norm, (settings, section) = "the discriminator's gradient norm", self._discriminator_optimizer(config)
        return Adversary(config, self.discriminator, FiniteSteps(settings, "_discriminator", norm, section))

    def _discriminator_optimizer(self, config: AdversarialConfig) -> tuple[OptimizerConfig, str]:
        """Return the discriminator's optimizer and the section that sets it."""
        if config.optimizer:
            return config.optimizer, "model.adversarial.optimizer"
        return self.optimizer_config, "model.optimizer"

    def setup(self, stage: str) -> None:
        """Read VGG16 early, since its file may be missing."""
        if self.perceptual:
            self.perceptual.load()

    def check_length(self, steps: int) -> None:
        """Check that training is long enough for the adversarial loss, and warn of a warm-up that ends after it.

        Args:
            steps: optimizer steps of the training; -1 = without end.

        Raises:
            UserError: training ends before the adversarial loss is used.
        """
        check_warmup(self.optimizer_config, steps)
        config = self.adversary and self.adversary.config
        if config and config.weight and 0 <= steps <= config.start_step:
            raise UserError(
                f"model.adversarial.start_step is {config.start_step}, but training ends after {steps} steps: its loss "
                "would never start; set a smaller start_step, train longer, or set model.adversarial null"
            )
        if config and config.weight:
            after = steps - config.start_step if steps >= 0 else steps
            settings, section = self._discriminator_optimizer(config)
            check_warmup(settings, after, section, "the training of the discriminator")

    def configure_callbacks(self) -> list[FiniteSteps]:
        return [self.finite_steps, *([self.adversary.finite_steps] if self.adversary else [])]

    def configure_model(self) -> None:
        # Before the strategy wraps the module, since the conversion replaces layers; weights and names stay.
        if self.adversary and self.trainer.world_size > 1 and self.trainer.strategy.root_device.type == "cuda":
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.discriminator)

    def on_fit_start(self) -> None:
        """Broadcast rank 0's discriminator, as DDP does for the tokenizer."""
        if self.adversary and self.trainer.world_size > 1:
            # On the CPU, since the broadcast pickles tensors together with their device.
            weights = {name: value.cpu() for name, value in self.discriminator.state_dict().items()}
            self.discriminator.load_state_dict(self.trainer.strategy.broadcast(weights))

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        stored = any(name.startswith("discriminator.") for name in checkpoint["state_dict"])
        if stored != (self.adversary is not None):
            state = "has a discriminator, model.adversarial is null" if stored else "has no discriminator"
            raise UserError(f"the checkpoint {state}; use the configuration that it was trained with")

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Initialize the codebook from the latents of all ranks before the first step, if configured."""
        if self.codebook_init == "data" and self.global_step == 0 and batch_idx == 0:
            generator = torch.Generator().manual_seed(hash_seed("codebook_init", self.seed))
            with torch.no_grad():
                # A collective: every rank selects codes from the latents of the global batch.
                latent = ProcessGroup().cat(self.network.latent(self._images(batch)))
            self.network.quantize.start_from(latent, generator)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Run the backward passes of both networks on a micro-batch, and the optimizers after the last one."""
        images, accumulate = self._images(batch), self.trainer.datamodule.plan.accumulate
        is_last = (batch_idx + 1) % accumulate == 0
        result = self.network(images)
        # A collective at every micro-batch: the record must be equal on all ranks.
        self.network.quantize.record_usage(ProcessGroup().cat(result.quantized.codes_BL))
        terms = self._terms(images, result)
        adversarial = self.adversary is not None and self.global_step >= self.adversary.config.start_step
        logs = self._backward(images, result, terms, accumulate, adversarial)
        squared_error = mse_loss(result.images_BCHW.detach().float().clamp(-1, 1), images)
        values = {"loss": terms.loss, **terms.each, **logs, "psnr": squared_error}
        if means := self.means.add(values, is_last):
            # As in validation, of the mean error over all images; 4 is the square of the range.
            means["psnr"] = 10 * (4 / means["psnr"]).log10()
            self.log_dict({f"train/{name}": mean for name, mean in means.items()})
        if is_last:
            self._steps(result, adversarial)

    def _backward(
        self, images: Tensor, result: Reconstruction, terms: LossTerms, accumulate: int, adversarial: bool
    ) -> dict[str, Tensor]:
        """Accumulate the gradients of both networks and return the values to log.

        Neither network has taken its step yet, as in the published code.
        """
        if self._scaler:  # gradients may overflow here, and the scaler handles that; the loss may not
            check_finite(terms.loss, "the loss", self.global_step)
        if not adversarial:
            self.manual_backward(terms.loss / accumulate)
            return {}
        reconstructions = result.images_BCHW
        term, logs = self.adversary.generator_term(terms, reconstructions, self.network.last_layer, self._scaler)
        self.manual_backward((terms.loss + term) / accumulate)
        loss, more = self.adversary.discriminator_loss(images, reconstructions)
        # Not by manual_backward, after which DDP would wait for gradients of the tokenizer.
        (self._scaler.scale(loss / accumulate) if self._scaler else loss / accumulate).backward()
        return logs | more

    def _steps(self, result: Reconstruction, adversarial: bool) -> None:
        if adversarial:
            optimizer, schedule = self.optimizers(use_pl_optimizer=False)[1], self.lr_schedulers()[1]
            norm = self.adversary.step(optimizer, schedule, self._scaler, self.global_step)
            self.log("train/grad_norm_discriminator", norm)
        # Lightning's wrapper for this optimizer only, so that a global step is one step of the tokenizer.
        optimizer, schedule = _first(self.optimizers()), _first(self.lr_schedulers())
        optimizer.step()  # counted as the global step; in fp16 it unscales, and updates the scaler for both
        if self._scaler:
            check_scale(self._scaler.get_scale(), self.global_step)
        self.log("train/grad_norm", self.grad_norm)
        optimizer.zero_grad()
        schedule.step()
        self._update_codebook(result)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the tokenizer's gradients; in fp16 they are unscaled by now.

        `_steps` logs the norm: a log call in a second hook would drop the values that `training_step` has logged.
        """
        self.grad_norm = clip_gradients(self.network, self.gradient_clip, optimizer)
        if not self._scaler:
            self.finite_steps.add(self.grad_norm, self.global_step, optimizer)

    def _update_codebook(self, result: Reconstruction) -> None:
        counts = self.network.quantize.recent_counts()
        self.log_dict({"train/codebook_usage": usage(counts), "train/codebook_perplexity": perplexity(counts)})
        if self.revival.every_n_steps:
            self.log("train/revived_codes", float(self._revive(result)))

    def _revive(self, result: Reconstruction) -> int:
        """Revive unused codes if it is due and return their number."""
        rows, columns = self.network.grid
        seen = self.global_step * self.global_batch_size * rows * columns
        # Before the record is full, codes that are in use would count as unused.
        if not self.revival.due(self.global_step) or seen < self.network.quantize.codebook_used.numel():
            return 0
        self.finite_steps.read()
        if self.finite_steps.in_a_row:  # the latents of a skipped step may not be finite either
            return 0
        # A collective: all ranks reach it together, since step and record are equal on all of them.
        latent = ProcessGroup().cat(result.quantized.latent_BCHW.detach())
        return revive(self.network.quantize, latent, self.seed, self.global_step)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Reconstruct and score in float32, so that results do not depend on `trainer.precision`."""
        images = self._images(batch)
        with exact_float32(images.device.type):
            result = self.network(images)
            self.scores.update(images, result, self._terms(images, result))

    def on_validation_epoch_end(self) -> None:
        for name, value in self.scores.compute().items():
            self.log(f"val/{name}", value, prog_bar=name == "psnr")
        self.scores.reset()

    def configure_optimizers(self) -> tuple[list, list]:
        steps = total_steps(self.trainer, self.trainer.datamodule)
        size, scaled = self.global_batch_size, self._scaler is not None
        pairs = [build_optimizer(self.network, self.optimizer_config, size, steps, scaled)]
        if self.adversary:
            config = self.adversary.config
            after = max(steps - config.start_step, 1) if steps >= 0 else steps  # weight 0 is allowed to never start
            settings = config.optimizer or self.optimizer_config
            pairs.append(build_optimizer(self.discriminator, settings, size, after, scaled))
        return [optimizer for optimizer, _ in pairs], [schedule for _, schedule in pairs]

    @property
    def _scaler(self) -> GradScaler | None:
        """Return Lightning's loss scaler in fp16, whose state is part of the checkpoint."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _terms(self, images: Tensor, result: Reconstruction) -> LossTerms:
        return self.loss.terms(images, result, self.network.quantize.codebook_VC, self.perceptual)

    def _images(self, batch: dict[str, Tensor]) -> Tensor:
        return to_unit_range(batch["images"]).contiguous(memory_format=self.memory_format)


def _first(items):
    """Return the tokenizer's optimizer or schedule; Lightning returns a list only if there are several."""
    return items[0] if isinstance(items, list) else items
