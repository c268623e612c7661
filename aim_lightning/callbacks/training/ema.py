"""Exponential moving average (EMA) of the network's weights."""

import copy
from itertools import chain

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from aim_lightning.utils.errors import UserError


class EMA(Callback):
    """Average the parameters of `module.network`, copy its buffers, and replace it in validation.

    A step that `modules.finite_steps` skips changes no weight, so that the average stays finite.

    Args:
        decay: weight of the past per step, 0 to 1; average += (1 - decay) * (weights - average).
        warm_up: let the decay grow as (1 + step) / (10 + step) until it reaches `decay`, so that a short run is
            not an average of its initialisation.

    Raises:
        UserError: decay out of range.
    """

    def __init__(self, decay: float = 0.9999, warm_up: bool = True) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay is {decay}; it must be in [0, 1)")
        self.decay, self.warm_up = decay, warm_up
        self.network: nn.Module | None = None
        self.steps = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.network is None:
            self.network = copy.deepcopy(pl_module.network).eval().requires_grad_(False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.network.to(pl_module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.steps:  # `init_from` loads weights after `setup`
            self.network.load_state_dict(pl_module.network.state_dict())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        if (batch_idx + 1) % trainer.datamodule.plan.accumulate == 0:  # once per step, not per micro-batch
            self.update(pl_module.network)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Update the average with the weights of one step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.warm_up else self.decay
        averages, weights = list(self.network.parameters()), [p.detach() for p in network.parameters()]
        # Private, but the only call that updates all parameters in a few kernels.
        torch._foreach_lerp_(averages, weights, 1 - decay)
        # Buffers are counts and masks, whose average would be meaningless.
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)
        self.steps += 1

    @torch.no_grad()
    def swap(self, network: nn.Module) -> None:
        """Exchange weights and buffers with the average, in place: compiled and DDP-wrapped networks stay valid."""
        averages, weights = (chain(part.parameters(), part.buffers()) for part in (self.network, network))
        for average, weight in zip(averages, weights, strict=True):  # one tensor at a time needs the least memory
            copy = average.clone()
            average.copy_(weight)
            weight.copy_(copy)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.network.to(pl_module.device)
        self.swap(pl_module.network)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.swap(pl_module.network)

    def state_dict(self) -> dict:
        return {"steps": self.steps, "network": self.network.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        self.network.load_state_dict(state["network"])
