"""Optimizer, schedule, clipping, checks and logged means of both stages."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import log
from aim_lightning.utils.ranges import Range, check_arguments

NEVER_DECAYED = ("A_log", "dt_bias", "D")
# fp16's loss scale starts at 65536 and is halved by every step whose gradients are not finite.
SMALLEST_SCALE = 2.0**-10


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Args:
        base_learning_rate: peak per 256 images of global batch; the optimizer's is base_learning_rate * batch / 256.
        betas: of Adam.
        weight_decay: of parameters with two or more dimensions, except A_log, dt_bias, D, norms and biases.
        warmup_steps: optimizer steps of linear warm-up from 0.
        schedule: after the warm-up: ``constant``, or ``linear`` or ``cosine`` decay to the end of training.
        final_fraction: learning rate at the end of a decaying schedule, as a fraction of the peak.
        on_nonfinite: ``stop`` training at a gradient norm that is not finite, or ``skip`` the step and count it.
            Neither changes a weight. In fp16 the loss scaler skips such steps in any case.
        max_skipped_in_a_row: with ``skip``, number of consecutive skipped steps that stops training.

    Raises:
        UserError: a value out of range.
    """

    base_learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    final_fraction: float = 0.0
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped_in_a_row: int = 10

    def __post_init__(self) -> None:
        special = {"base_learning_rate": Range(above=True), "betas": Range(0, 1, below=True)}
        special |= {"final_fraction": Range(0, 1), "max_skipped_in_a_row": Range(1)}
        check_arguments("model.optimizer.", OptimizerConfig, vars(self), **special)

    def peak(self, global_batch_size: int) -> float:
        """Return the optimizer's learning rate after the warm-up."""
        return self.base_learning_rate * global_batch_size / 256


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Split the parameters into a group with weight decay and one without."""
    # Norms, biases and the decay rates of the state-space layer have natural scales: decay would bias them.
    decayed, kept = [], []
    for name, parameter in network.named_parameters():
        never = parameter.dim() < 2 or name.rsplit(".", 1)[-1] in NEVER_DECAYED
        (kept if never else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate_factor(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of a step as a multiple of the peak.

    Args:
        config: the schedule.
        step: optimizer step, 0 = the first.
        total_steps: of the whole training.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    after = max(total_steps - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / after, 1.0)
    shape = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_fraction + (1 - config.final_fraction) * shape


class SkippingAdamW(AdamW):
    """AdamW that skips the next step where `found_inf` is 1, and divides its gradients by `grad_scale`.

    Both are float32 scalars on the device of the weights. PyTorch's fused kernel reads them there, so that neither
    clipping nor skipping waits for the GPU or needs a pass of its own. Together with the EMA's update, a step moves 44
    bytes per parameter. A kernel of our own for all of it would move 42, too little to maintain one.
    """

    found_inf: torch.Tensor | None = None
    grad_scale: torch.Tensor | None = None  # fused only

    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """Take a step, unless the closure has set `found_inf` to 1."""
        loss = None if closure is None else closure()
        if self.defaults["fused"]:
            super().step()
        else:  # the kernels of other devices refuse the attribute
            found_inf, self.found_inf = self.found_inf, None
            if found_inf is None or not found_inf:
                super().step()
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state that may come from another device, whose kernels are not used here."""
        groups = [group | {"fused": self.defaults["fused"]} for group in state_dict["param_groups"]]
        super().load_state_dict(state_dict | {"param_groups": groups})


def build_optimizer(
    network: nn.Module, config: OptimizerConfig, global_batch_size: int, total_steps: int, scaled: bool = False
) -> tuple[SkippingAdamW, "Schedule"]:
    """Build AdamW with decay groups and its schedule per step.

    Args:
        network: its parameters are optimized.
        config: the options.
        global_batch_size: images per optimizer step.
        total_steps: of the whole training; -1 = without end.
        scaled: True in fp16, whose scaled gradients the fused AdamW does not support.

    Raises:
        UserError: a decaying schedule without an end.
    """
    if config.schedule != "constant" and total_steps < 0:
        raise UserError(
            f"the {config.schedule} schedule needs an end: set trainer.max_steps or trainer.max_epochs, "
            "or model.optimizer.schedule constant"
        )
    fused = next(network.parameters()).device.type == "cuda" and not scaled
    groups = decay_groups(network, config.weight_decay)
    optimizer = SkippingAdamW(groups, lr=config.peak(global_batch_size), betas=config.betas, fused=fused)
    return optimizer, Schedule(optimizer, lambda step: learning_rate_factor(config, step, total_steps))


class Schedule(LambdaLR):
    """Schedule that restores the step from a checkpoint, but keeps learning rate, betas and weight decay.

    The states of optimizer and schedule contain those of the checkpoint, which would override changes of the
    configuration. Lightning loads the optimizer first, so that this schedule corrects both.
    """

    SETTINGS = "initial_lr", "betas", "weight_decay"

    def __init__(self, optimizer: AdamW, factor: Callable[[int], float]) -> None:
        super().__init__(optimizer, factor)
        self.settings = [{name: group[name] for name in self.SETTINGS} for group in optimizer.param_groups]

    def state_dict(self) -> dict:
        state = super().state_dict()
        del state["settings"]  # the current configuration decides
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.base_lrs = [settings["initial_lr"] for settings in self.settings]
        for group, settings, factor in zip(self.optimizer.param_groups, self.settings, self.lr_lambdas, strict=True):
            group |= settings
            group["lr"] = settings["initial_lr"] * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def total_steps(trainer, datamodule) -> int:
    """Return the optimizer steps of the whole training, -1 if it has no end.

    Args:
        trainer: its max_steps and max_epochs; the earlier end counts.
        datamodule: its number of batches per epoch.
    """
    ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        ends.append(trainer.max_epochs * datamodule.batches_per_epoch)
    return min(ends, default=-1)


def check_warmup(
    config: OptimizerConfig, steps: int, section: str = "model.optimizer", training: str = "training"
) -> None:
    """Warn of a warm-up that ends after the training.

    Args:
        config: the schedule.
        steps: optimizer steps of the training; -1 = without end.
        section: of the configuration that sets the schedule.
        training: its name in the warning.
    """
    if 0 <= steps < config.warmup_steps:
        log(
            f"warning: {section}.warmup_steps is {config.warmup_steps}, but {training} ends after {steps} steps: "
            "the learning rate never reaches its peak; set fewer, or train longer"
        )


def clip_gradients(network: nn.Module, largest: float | None, optimizer: AdamW | None = None) -> torch.Tensor:
    """Scale all gradients so that their L2 norm is at most `largest`, and return the norm before.

    Lightning's clipping refuses the fused AdamW under autocast, although bf16 scales nothing.

    Args:
        network: its gradients are changed in place, now or in the optimizer's step.
        largest: None or 0 = no clipping.
        optimizer: a fused one scales the gradients in its next step.
    """
    parameters = [p for p in network.parameters() if p.grad is not None]
    # Computed once for clipping, log and check.
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    if largest and optimizer is not None and optimizer.defaults["fused"]:
        # The inverse of the factor in clip_grads_with_norm_.
        optimizer.grad_scale = ((norm.float() + 1e-6) / largest).clamp(min=1.0)
    elif largest:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


def check_finite(
    value: torch.Tensor, name: str, step: int, section: str = "model.optimizer", curve: str = "train/grad_norm"
) -> None:
    """Stop training before a step that is not finite reaches the weights.

    Args:
        value: scalar; reading it waits for the device.
        name: of the value, for the error.
        step: optimizer steps so far.
        section: of the configuration that sets the learning rate, for the error.
        curve: logged values that show the reason, for the error.

    Raises:
        UserError: the value is infinite or not a number.
    """
    # NaN in a weight could not be undone, and later checkpoints would contain it.
    if not torch.isfinite(value):
        raise UserError(
            f"{name} is {float(value)} at step {step}: training stops; "
            f"lower {section}.base_learning_rate or look at {curve} before this step"
        )


def check_scale(scale: float, step: int) -> None:
    """Stop a training in fp16 whose steps are all skipped; every rank has the same scale.

    Args:
        scale: of the loss.
        step: optimizer steps so far.

    Raises:
        UserError: the scale is too small for an overflow, so that the gradients themselves are not finite.
    """
    if scale < SMALLEST_SCALE:
        raise UserError(
            f"fp16's scale of the loss fell to {scale:g} at step {step}: gradients are not finite at any scale and "
            "every step is skipped; training stops; set trainer.precision bf16-mixed or "
            "lower the learning rates"
        )


class StepMeans:
    """Means of logged values over the global batch: over the micro-batches of a step and over all ranks.

    All micro-batches have the same size, so that the mean over them is that over the images.
    """

    def __init__(self) -> None:
        self.micro_batches: list[torch.Tensor] = []

    def add(self, values: dict[str, torch.Tensor], is_last: bool) -> dict[str, torch.Tensor]:
        """Add the values of a micro-batch.

        Args:
            values: scalars by name, the same names for every micro-batch of a step.
            is_last: True for the last micro-batch of the step, on all ranks.

        Returns:
            The means after the last micro-batch, else nothing.
        """
        self.micro_batches.append(torch.stack([value.detach().float() for value in values.values()]))
        if not is_last:
            return {}
        # One small all-reduce per step; it stays on the device, without waiting for it.
        means = ProcessGroup().mean(torch.stack(self.micro_batches).mean(0))
        self.micro_batches.clear()
        return dict(zip(values, means.unbind(), strict=True))
