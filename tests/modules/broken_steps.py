"""Gradients that are NaN in some steps of a training, and the tensors in its checkpoints."""

import math
from pathlib import Path

import torch

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.modules.aim import AiMModule
from aim_lightning.runs.directory import list_checkpoints, step_of

EVERY_STEP = ("--callbacks.checkpoints.every_n_steps", 1, "--callbacks.checkpoints.keep_last", 30)


def break_steps(monkeypatch, *steps: int) -> list[tuple[AiMModule, dict[str, torch.Tensor]]]:
    """Make a gradient NaN in these steps, and return a list of the modules and their weights before such a step."""
    original, before = AiMModule.configure_gradient_clipping, []

    def clip(self, *arguments, **options):
        if self.global_step in steps:
            next(self.network.parameters()).grad[0] = math.nan
            before.append((self, {name: value.clone() for name, value in self.network.state_dict().items()}))
        original(self, *arguments, **options)

    monkeypatch.setattr(AiMModule, "configure_gradient_clipping", clip)
    return before


def checkpoints(run_dir: Path) -> dict[int, dict]:
    """Read all checkpoints of a run by step."""
    return {step_of(path): read_checkpoint(path) for path in list_checkpoints(run_dir)}


def flat(content, *keys) -> dict[tuple, torch.Tensor]:
    """Return all tensors of these parts of a checkpoint by their paths."""
    if isinstance(content, torch.Tensor):
        return {keys: content}
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return {path: tensor for key, value in entries for path, tensor in flat(value, *keys, key).items()}


def assert_equal(first, second) -> None:
    """Assert that all tensors in two parts of checkpoints are equal to the bit."""
    first, second = flat(first), flat(second)
    assert first.keys() == second.keys() and first
    assert not [path for path in first if not torch.equal(first[path], second[path])]


def assert_finite(content: dict) -> None:
    """Assert that weights, averages and the optimizer's state are finite."""
    values = flat({key: content[key] for key in ("network", "ema", "optimizers")}).values()
    assert values and all(value.isfinite().all() for value in values)
