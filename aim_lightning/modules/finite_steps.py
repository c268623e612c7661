"""Keep steps whose gradients are not finite away from the weights, without waiting for the GPU in every step."""

from collections import deque
from dataclasses import dataclass

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from aim_lightning.modules.optim import OptimizerConfig, SkippingAdamW, check_finite
from aim_lightning.utils.logging import log

IN_FLIGHT = 2  # steps that the host may be ahead of a GPU


@dataclass(eq=False)
class FiniteSteps(Callback):
    """Skip steps whose gradient norm is not finite, and stop training or count them.

    The optimizer skips the step on the device, so that weights, moments and their average stay finite. The norm is
    copied to the host in the background and read two steps later. It is also read at log boundaries, before every
    checkpoint and at the end. The norm is equal on all ranks, so that all of them skip and stop together.

    Args:
        config: its `on_nonfinite` and `max_skipped_in_a_row`.
        suffix: of the logged train/skipped_steps and train/grad_norm.
        name: of the norm, for errors.
        section: of the configuration that `config` comes from, for errors.
    """

    config: OptimizerConfig
    suffix: str = ""
    name: str = "the gradient norm"
    section: str = "model.optimizer"

    def __post_init__(self) -> None:
        self.curve = f"train/grad_norm{self.suffix}"
        self.skipped = self.in_a_row = 0  # steps of the whole run
        self.found_inf: Tensor | None = None
        self.pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    @property
    def state_key(self) -> str:
        """Return the key of the counts in a checkpoint."""
        return f"FiniteSteps{self.suffix}"

    def add(self, norm: Tensor, step: int, optimizer: SkippingAdamW) -> None:
        """Make the optimizer skip its next step if the norm is not finite, and read the norms that are due.

        Args:
            norm: of all gradients, on their device.
            step: optimizer steps so far.
            optimizer: of these gradients.

        Raises:
            UserError: a step that stops training; on a GPU up to two steps later.
        """
        found_inf = torch.isfinite(norm).logical_not().float()
        if self.config.on_nonfinite == "stop" and self.found_inf is not None:
            # Steps after the first one are already in flight, and must not change the weights either.
            found_inf = torch.maximum(found_inf, self.found_inf)
        self.found_inf = optimizer.found_inf = found_inf
        copy, event = start_copy(norm)
        self.pending.append((step, copy, event))
        # Waiting for an old step also bounds the memory of launches that the GPU has not reached.
        self.read(IN_FLIGHT if event else 0)

    def read(self, in_flight: int = 0) -> None:
        """Wait for all but the newest `in_flight` norms, and check them.

        Raises:
            UserError: a step that stops training.
        """
        while len(self.pending) > in_flight:
            step, norm, event = self.pending.popleft()
            if event:
                event.synchronize()
            self._check(norm, step)

    def _check(self, norm: Tensor, step: int) -> None:
        if torch.isfinite(norm):
            self.in_a_row = 0
            return
        if self.config.on_nonfinite == "stop":
            check_finite(norm, self.name, step, self.section, self.curve)
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        log(f"warning: {self.name} is {float(norm)} at step {step}: the step is skipped")
        if self.in_a_row >= self.config.max_skipped_in_a_row:
            name = f"after {self.in_a_row} skipped steps in a row, {self.name}"
            check_finite(norm, name, step, self.section, self.curve)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0:
            self.read()
            if self.config.on_nonfinite == "skip" and self.found_inf is not None:  # fp16 skips by itself
                self.log(f"train/skipped_steps{self.suffix}", float(self.skipped))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.read()

    def state_dict(self) -> dict[str, int]:
        # Lightning calls it for every checkpoint, before anything is written.
        self.read()
        return {"skipped": self.skipped, "in_a_row": self.in_a_row} if self.skipped else {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


def start_copy(norm: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start to copy a scalar to the host; it may be read after the event, or at once without one."""
    if not norm.is_cuda:
        return norm, None
    copy = norm.to("cpu", non_blocking=True)  # into pinned memory
    event = torch.cuda.Event()
    event.record()
    return copy, event
