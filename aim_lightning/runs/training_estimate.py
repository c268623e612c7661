"""Estimate memory, disk and time of a training by plain arithmetic."""

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
        steps: optimizer steps.
        kept_checkpoints: number of checkpoints kept, latest and best.
        every_n_steps: steps between two checkpoints; None = by time only.
        every_n_minutes: minutes between two checkpoints; None = by steps only.
    """

    trained: int
    averaged: int
    rows: int
    global_batch_size: int
    devices: int
    steps: int
    kept_checkpoints: int
    every_n_steps: int | None
    every_n_minutes: float | None

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

    def hours(self, images_per_s: float) -> float:
        """Return the wall-clock hours of training, without validation and checkpoints."""
        return self.steps * self.global_batch_size / images_per_s / 3600

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
