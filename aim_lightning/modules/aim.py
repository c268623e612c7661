"""Stage 2: the autoregressive network learns the codes of an image, given its class."""

import math
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torchmetrics import MeanMetric

from aim_lightning.models import AiM, AiMConfig, AutoregressiveNetwork
from aim_lightning.models.aim.recompute import Checkpointing
from aim_lightning.modules.finite_steps import FiniteSteps
from aim_lightning.modules.graphed_loss import GraphedLoss, refusal
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
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import log, warn_once
from aim_lightning.utils.random import hash_uniform
from aim_lightning.utils.ranges import Range, check_arguments

# Share of ln V, the loss of a uniform guess. The published curve ends near 0.7, the demo's near 0.4.
IMPLAUSIBLE = 0.05


class AiMModule(LightningModule):
    """Trains AiM with cross-entropy over all codes (arXiv 2408.12245, section 4.1).

    Args:
        network: sizes of the network.
        optimizer: AdamW and its schedule.
        global_batch_size: images per optimizer step; set it by interpolation from the data section.
        label_dropout: share of images trained as the null class, 0 to 1; training only.
        seed: decides with (epoch, dataset row) which labels are dropped.
        compile: torch.compile the network in place.
        backend: ``auto`` selects our Triton kernels on an NVIDIA GPU, else mamba-ssm's, else plain PyTorch; ``triton``,
            ``mamba_ssm`` and ``torch`` require one of them.
        gradient_checkpointing: recompute activations in the backward pass, with the same values: ``none``; ``blocks`` =
            keep the inputs of each block; ``all`` = keep the inputs of groups of about sqrt(n_layer) blocks.
        cuda_graph: replay forward and backward as a CUDA graph where that is possible: one GPU, backend triton,
            micro-batches of up to 64 images. The numbers are the same; the host no longer limits the speed.
        init_from: weights that a new run starts from: a run, a checkpoint, or a published file. The number of classes
            and the grid may differ; everything else must fit.

    Raises:
        UserError: a value out of range.
    """

    network_class: type[AutoregressiveNetwork] = AiM

    def __init__(
        self,
        network: AiMConfig,
        optimizer: OptimizerConfig,
        global_batch_size: int,
        label_dropout: float = 0.1,
        seed: int = 0,
        compile: bool = False,
        backend: Literal["auto", "torch", "mamba_ssm", "triton"] = "auto",
        gradient_checkpointing: Checkpointing = "none",
        cuda_graph: bool = True,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        ranges = {"global_batch_size": Range(1), "label_dropout": Range(0, 1)}
        check_arguments("model.", AiMModule.__init__, locals(), **ranges)
        self.network = self.network_class(network, backend, gradient_checkpointing)
        self.init_from = init_from
        self.optimizer_config, self.global_batch_size = optimizer, global_batch_size
        self.label_dropout, self.seed, self.compile_network = label_dropout, seed, compile
        self.cuda_graph, self.graphed_loss = cuda_graph, None
        self.means, self.finite_steps = StepMeans(), FiniteSteps(optimizer)
        # Not Lightning's mean over ranks, which rounds the number of rows when ranks have unequal shares.
        self.val_loss = MeanMetric()

    def check_length(self, steps: int) -> None:
        """Warn of a warm-up that ends after the training.

        Args:
            steps: optimizer steps of the training; -1 = without end.
        """
        check_warmup(self.optimizer_config, steps)

    def configure_callbacks(self) -> list[FiniteSteps]:
        return [self.finite_steps]

    def configure_model(self) -> None:
        if self.compile_network:
            self.network.compile()  # in place: parameter names stay those of the plain network

    def on_train_start(self) -> None:
        plan = self.trainer.datamodule.plan
        if self.cuda_graph and self.device.type == "cuda":
            is_alone = isinstance(self.trainer.strategy, SingleDeviceStrategy)
            reason = refusal(self.network, plan.micro_batch_size, is_alone, self.trainer.precision)
            reason = "compile is set" if self.compile_network else reason
            log(f"cuda_graph: off, because {reason}" if reason else "cuda_graph: in use")
            self.graphed_loss = None if reason else GraphedLoss(self.network, plan.accumulate)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        labels = self._drop_labels(batch)
        if self.graphed_loss:
            is_first = batch_idx % self.trainer.accumulate_grad_batches == 0
            loss = self.graphed_loss(batch["codes"], labels, is_first)
        else:
            loss = self.network.loss(batch["codes"], labels)
        is_last = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        if means := self.means.add({"loss": loss}, is_last):
            self.log("train/loss", means["loss"])
            self.log("train/bits_per_code", means["loss"] / math.log(2))
        if self._is_scaled:  # gradients may overflow here, and the scaler handles that; the loss may not
            check_finite(loss, "the loss", self.global_step)
            check_scale(self.trainer.precision_plugin.scaler.get_scale(), self.global_step)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.val_loss.update(self.network.loss(batch["codes"], batch["labels"]), weight=len(batch["labels"]))

    def on_validation_epoch_end(self) -> None:
        # A collective: torchmetrics sums values and weights over ranks.
        loss = self.val_loss.compute()
        self.val_loss.reset()
        self._check_plausible(float(loss))
        self.log("val/loss", loss)
        self.log("val/bits_per_code", loss / math.log(2), prog_bar=True)

    def _check_plausible(self, loss: float) -> None:
        """Warn once about a loss that natural images do not reach."""
        uniform = math.log(self.network.config.vocab_size)
        if loss < IMPLAUSIBLE * uniform:
            size = self.network.config.vocab_size
            warn_once(
                f"val/loss is below {IMPLAUSIBLE:.0%} of ln {size} = {uniform:.2f} nats, which is implausible; "
                "check the shards (aim-lightning shards verify) and the tokenizer"
            )

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        """Clip by norm and log the norm before.

        DDP has averaged the gradients by now, so that the norm is equal on all ranks and all of them stop together.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            raise UserError(f"trainer.gradient_clip_algorithm is {gradient_clip_algorithm}; only norm is supported")
        norm = clip_gradients(self.network, gradient_clip_val, optimizer)
        self.log("train/grad_norm", norm)  # a tensor on the device: logging does not wait for it
        if not self._is_scaled:
            self.finite_steps.add(norm, self.global_step, optimizer)

    def configure_optimizers(self) -> dict:
        steps = total_steps(self.trainer, self.trainer.datamodule)
        optimizer, schedule = build_optimizer(
            self.network, self.optimizer_config, self.global_batch_size, steps, self._is_scaled
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def _is_scaled(self) -> bool:
        """Return True if the loss is scaled, as in fp16."""
        return self.trainer.precision == "16-mixed"

    def _drop_labels(self, batch: dict[str, Tensor]) -> Tensor:
        # A hash of the dataset row instead of a generator: resume and other rank counts drop the same labels.
        uniform_B = hash_uniform("label_dropout", self.seed, batch["epoch"], batch["index"])
        null = torch.full_like(batch["labels"], self.network.null_class)
        return torch.where(uniform_B < self.label_dropout, null, batch["labels"])
