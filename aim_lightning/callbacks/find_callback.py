"""Search of a trainer's callbacks."""

from typing import Any

from lightning.pytorch import Trainer


def find_callback(trainer: Trainer, callback_class: type) -> Any:
    """Return the trainer's callback of a class; None without one."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, callback_class)), None)
