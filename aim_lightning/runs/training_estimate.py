"""What a training will need, from a few numbers: plain arithmetic, every figure with where it comes from."""

from dataclasses import dataclass

WEIGHT, GRADIENT, ADAM, AVERAGE = 4, 4, 8, 4  # bytes a parameter: everything is kept in float32
MARGIN = 1.5  # of measured seconds: file systems have bad days


@dataclass(frozen=True)
class Training:
    """What the configuration comes to.

    Args:
        trained: parameters with gradients.
        averaged: parameters of the network that has a moving average, 0 without one.
        rows: images in the training set.
        global_batch_size: images an optimizer step.
        devices: all together.
        steps: optimizer steps.
        kept_checkpoints: the latest and the best that stay.
        every_n_steps: steps between two checkpoints, None = by time.
        every_n_minutes: minutes between two checkpoints, None = by steps.
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
        """Weights, gradients, AdamW's moments and the average on one device; activations come on top."""
        return self.trained * (WEIGHT + GRADIENT + ADAM) + self.averaged * AVERAGE

    @property
    def checkpoint_bytes(self) -> int:
        """One file: no gradients."""
        return self.trained * (WEIGHT + ADAM) + self.averaged * AVERAGE

    @property
    def checkpoints_bytes(self) -> int:
        """Those that are kept, and the one that is being written before the oldest goes."""
        return self.checkpoint_bytes * (self.kept_checkpoints + 1)

    def hours(self, images_per_s: float) -> float:
        """Wall-clock hours without validation and checkpoints."""
        return self.steps * self.global_batch_size / images_per_s / 3600

    def step_seconds(self, images_per_s: float) -> float:
        return self.global_batch_size / images_per_s

    def lost_seconds(self, images_per_s: float) -> float:
        """Training that a kill without warning takes back at most."""
        by_steps = self.every_n_steps * self.step_seconds(images_per_s) if self.every_n_steps else float("inf")
        by_time = 60 * self.every_n_minutes if self.every_n_minutes else float("inf")
        return min(by_steps, by_time)


def requeue_window(checkpoint_seconds: float, pause_seconds: float, step_seconds: float = 0.0) -> float:
    """Seconds before the limit at which the warning must come: the longest pause between two batches and a save.

    With several ranks an ordinary step comes on top: they hear what one of them has seen a boundary later.
    """
    return MARGIN * (checkpoint_seconds + pause_seconds + step_seconds)


def shard_bytes(rows: int, views: int, tokens: int) -> int:
    """Token shards: 16 bits a code and view, 8 bytes of label and about 20 of name a row."""
    return rows * (2 * views * tokens + 28)
