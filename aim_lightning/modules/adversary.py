"""Adversarial training of the tokenizer: a discriminator with its own optimizer."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from torch.amp import GradScaler
from torch.func import functional_call
from torch.optim.lr_scheduler import LRScheduler

from aim_lightning.losses import LossTerms, adaptive_weight, discriminator_loss, generator_loss
from aim_lightning.models import PatchGAN, PatchGANConfig
from aim_lightning.modules.finite_steps import FiniteSteps
from aim_lightning.modules.optim import OptimizerConfig, SkippingAdamW, clip_gradients
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.ranges import check_arguments


@dataclass(frozen=True)
class AdversarialConfig:
    """The adversarial loss and its discriminator.

    Args:
        loss: ``hinge``, ``non_saturating``, or ``vanilla`` (cross-entropy for the discriminator, the mean logit for
            the tokenizer, as in VQGAN).
        weight: of the tokenizer's term and of the discriminator's loss.
        start_step: optimizer steps before both are used.
        adaptive: multiply the tokenizer's term by the ratio of gradient norms at the decoder's last layer.
        discriminator: its sizes.
        optimizer: AdamW of the discriminator, with a schedule that starts at start_step; null = the tokenizer's.
        gradient_clip: largest L2 norm of the discriminator's gradient; null or 0 = no clipping.

    Raises:
        UserError: a number out of range, or another loss.
    """

    loss: Literal["hinge", "non_saturating", "vanilla"] = "hinge"
    weight: float = 0.5
    start_step: int = 20000
    adaptive: bool = False
    discriminator: PatchGANConfig = field(default_factory=PatchGANConfig)
    optimizer: OptimizerConfig | None = None
    gradient_clip: float | None = 1.0

    def __post_init__(self) -> None:
        check_arguments("model.adversarial.", AdversarialConfig, vars(self))


class Adversary:
    """The losses of both networks and the discriminator's step; the LightningModule owns network and optimizer.

    DDP ignores the discriminator, which has its own backward pass: its gradients are averaged here once per step, and
    its batch norm uses the images of all ranks.

    Args:
        config: the options.
        discriminator: the network.
        finite_steps: check of the discriminator's gradients.
    """

    def __init__(self, config: AdversarialConfig, discriminator: PatchGAN, finite_steps: FiniteSteps) -> None:
        self.config, self.discriminator, self.finite_steps = config, discriminator, finite_steps

    def generator_term(
        self, terms: LossTerms, reconstructions: Tensor, last_layer: Tensor, scaler: GradScaler | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the tokenizer's weighted adversarial term.

        Args:
            terms: the other terms of this batch.
            reconstructions: (B, 3, H, W).
            last_layer: weight of the decoder's last layer.
            scaler: of fp16 training.

        Returns:
            The term and the values to log.
        """
        # Detached parameters: the tokenizer's backward pass must not add to the discriminator's gradients.
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        loss = generator_loss(self.config.loss, functional_call(self.discriminator, frozen, reconstructions))
        logs, weight = {"generator": loss.detach()}, self.config.weight
        if self.config.adaptive:
            scale = scaler.get_scale() if scaler else 1.0
            logs["adaptive_weight"] = adaptive_weight(terms.pixels, loss, last_layer, ProcessGroup().mean, scale)
            weight = weight * logs["adaptive_weight"]
        return weight * loss, logs

    def discriminator_loss(self, images: Tensor, reconstructions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the discriminator's weighted loss; no gradient reaches the tokenizer.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            reconstructions: of the same shape.

        Returns:
            The loss and the values to log.
        """
        # Two passes, so that batch norm never mixes images with reconstructions.
        real, fake = self.discriminator(images), self.discriminator(reconstructions.detach())
        loss = discriminator_loss(self.config.loss, real, fake)
        logs = {"discriminator": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return self.config.weight * loss, {name: value.detach() for name, value in logs.items()}

    def step(self, optimizer: SkippingAdamW, schedule: LRScheduler, scaler: GradScaler | None, step: int) -> Tensor:
        """Take one optimizer step of the discriminator.

        Args:
            optimizer: of the discriminator.
            schedule: of its learning rate.
            scaler: of fp16 training; the tokenizer's step, which comes next, updates it.
            step: number of this step, for errors.

        Returns:
            The gradient norm before clipping.
        """
        # A collective, in place of DDP's; before unscaling, so that an overflow of any rank reaches all.
        ProcessGroup().average_gradients(self.discriminator)
        if scaler:
            scaler.unscale_(optimizer)
        norm = clip_gradients(self.discriminator, self.config.gradient_clip, optimizer)
        if scaler:
            scaler.step(optimizer)  # skips the step if a gradient overflowed
        else:
            self.finite_steps.add(norm, step, optimizer)
            optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        return norm
