"""The adversarial side of tokenizer training: a discriminator with an optimizer of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from aim_lightning.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss
from aim_lightning.losses.tokenizer import LossTerms
from aim_lightning.models import PatchGAN, PatchGANConfig
from aim_lightning.modules.optim import (
    OptimizerConfig,
    check_finite,
    clip_gradients,
)
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError


@dataclass(frozen=True)
class AdversarialConfig:
    """The adversarial loss and the discriminator behind it.

    Args:
        loss: ``hinge``, ``non_saturating``, or ``vanilla`` (cross-entropy for the discriminator, the mean logit for
            the tokenizer, as in VQGAN).
        weight: of the tokenizer's term and of the discriminator's loss.
        start_step: optimizer steps before both begin.
        adaptive: multiply the tokenizer's term by the ratio of gradient norms at the decoder's last layer.
        discriminator: its sizes.
        optimizer: AdamW of the discriminator, its schedule counted from start_step; null = the tokenizer's settings.
        gradient_clip: largest L2 norm of the discriminator's gradient; null = no clipping.

    Raises:
        UserError: a negative weight or step.
    """

    loss: Literal["hinge", "non_saturating", "vanilla"] = "hinge"
    weight: float = 0.5
    start_step: int = 20000
    adaptive: bool = False
    discriminator: PatchGANConfig = field(default_factory=PatchGANConfig)
    optimizer: OptimizerConfig | None = None
    gradient_clip: float | None = 1.0

    def __post_init__(self) -> None:
        for name in ("weight", "start_step"):
            if getattr(self, name) < 0:
                raise UserError(f"model.adversarial.{name} is {getattr(self, name)}; it must be 0 or more")

    def check_length(self, steps: int) -> None:
        """Raises UserError if a training of so many steps (-1 = without end) is over before the game begins."""
        if self.weight and 0 <= steps <= self.start_step:
            raise UserError(
                f"model.adversarial.start_step is {self.start_step}, but training ends after {steps} steps: its loss "
                "would never begin; set a smaller start_step, train longer, or set model.adversarial null"
            )


class Adversary:
    """Both sides of the game around a discriminator; the LightningModule owns the network and its optimizer.

    DDP leaves the discriminator alone, since it has a backward pass of its own: gradients are averaged here, once a
    step, and its batch norm sees the images of all processes.

    Args:
        config: the options.
        discriminator: the network.
    """

    def __init__(self, config: AdversarialConfig, discriminator: PatchGAN) -> None:
        self.config, self.discriminator = config, discriminator

    def generator_term(
        self, terms: LossTerms, made: Tensor, last_layer: Tensor, scaler: GradScaler | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The tokenizer's weighted term, and what to log.

        Args:
            terms: the other terms of this batch.
            made: reconstructions (B, 3, H, W).
            last_layer: weight of the decoder's last layer.
            scaler: of fp16 training.
        """
        with _frozen(self.discriminator):
            loss = generator_loss(self.config.loss, self.discriminator(made))
        logs, weight = {"generator": loss.detach()}, self.config.weight
        if self.config.adaptive:
            scale = scaler.get_scale() if scaler else 1.0
            logs["adaptive_weight"] = adaptive_weight(terms.pixels, loss, last_layer, ProcessGroup().mean, scale)
            weight = weight * logs["adaptive_weight"]
        return weight * loss, logs

    def discriminator_loss(self, images: Tensor, made: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's weighted loss, and what to log; no gradient reaches the tokenizer.

        Two passes, so that batch norm never mixes real images with reconstructions.
        """
        real, fake = self.discriminator(images), self.discriminator(made.detach())
        loss = discriminator_loss(self.config.loss, real, fake)
        logs = {"discriminator": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return self.config.weight * loss, {name: value.detach() for name, value in logs.items()}

    def step(self, optimizer: Optimizer, schedule: LRScheduler, scaler: GradScaler | None, step: int) -> Tensor:
        """One step of the discriminator; returns the norm of its gradient before clipping."""
        ProcessGroup().average_gradients(self.discriminator)
        if scaler:
            scaler.unscale_(optimizer)
        norm = clip_gradients(self.discriminator, self.config.gradient_clip)
        if scaler:
            scaler.step(optimizer)
        else:
            check_finite(norm, "the discriminator's gradient norm", step)
            optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        return norm


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Inside, the network passes gradients on but collects none."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
