"""Estimate memory, disk and time of a training by plain arithmetic."""

import math
from dataclasses import dataclass

WEIGHT, GRADIENT, ADAM, AVERAGE = 4, 4, 8, 4  # bytes per parameter: all states are float32


@dataclass(frozen=True)
class Training:
    """Sizes of a training that follow from its configuration.

    Args:
        trained: parameters with gradients.
        averaged: parameters of the averaged network (EMA), 0 without one.
        rows: images in the training set.
        global_batch_size: images per optimizer step.
        devices: total number over all nodes.
        steps: optimizer steps; infinite if only max_time ends the training.
        kept_checkpoints: number of checkpoints kept, latest and best.
        every_n_steps: steps between two checkpoints; None = by time only.
        every_n_minutes: minutes between two checkpoints; None = by steps only.
        max_seconds: time that trainer.max_time allows, with validation; infinite without it.
    """

    trained: int
    averaged: int
    rows: int
    global_batch_size: int
    devices: int
    steps: float
    kept_checkpoints: int
    every_n_steps: int | None
    every_n_minutes: float | None
    max_seconds: float = math.inf

    @property
    def state_bytes(self) -> int:
        """Return the bytes of weights, gradients, AdamW's moments and EMA per device, without activations."""
        return self.trained * (WEIGHT + GRADIENT + ADAM) + self.averaged * AVERAGE

    @property
    def checkpoint_bytes(self) -> int:
        """Return the bytes of one checkpoint file."""
        # A checkpoint has no gradients.
        return self.trained * (WEIGHT + ADAM) + self.averaged * AVERAGE

    @property
    def checkpoints_bytes(self) -> int:
        """Return the bytes of all kept checkpoints, plus the one written before the oldest is removed."""
        return self.checkpoint_bytes * (self.kept_checkpoints + 1)

    def remaining(self, images_per_s: float | None, step: int = 0, seconds: float = 0.0) -> tuple[float, bool]:
        """Return the wall-clock hours left, and True if max_time ends the training before its last step.

        Args:
            images_per_s: on all devices, without validation and checkpoints; None = unknown.
            step: of the newest checkpoint.
            seconds: of training up to it.
        """
        by_steps = max(0, self.steps - step) * self.step_seconds(images_per_s) if images_per_s else math.inf
        by_time = max(0.0, self.max_seconds - seconds)
        return min(by_steps, by_time) / 3600, by_time < by_steps

    def step_seconds(self, images_per_s: float) -> float:
        return self.global_batch_size / images_per_s

    def lost_seconds(self, images_per_s: float) -> float:
        """Return the most training time that is lost when the process is killed."""
        by_steps = self.every_n_steps * self.step_seconds(images_per_s) if self.every_n_steps else float("inf")
        by_time = 60 * self.every_n_minutes if self.every_n_minutes else float("inf")
        return min(by_steps, by_time)


def shard_bytes(rows: int, views: int, tokens: int) -> int:
    """Return the bytes of token shards: 2 per code and view; per row 8 for the label and about 20 for the key."""
    return rows * (2 * views * tokens + 28)
