"""Training speed of the published sizes, measured once on each kind of GPU."""

from dataclasses import replace
from pathlib import Path

import yaml
from torch import nn

from aim_lightning.cli.config import Config
from aim_lightning.data.stream import BatchPlan
from aim_lightning.models.aim.aim_config import PRESETS, AiMConfig

_TABLE = yaml.safe_load(Path(__file__).with_name("rates.yaml").read_text(encoding="utf-8"))
GPU = ("gpu", "cuda")  # values of trainer.accelerator
# Options of the trainer and of AiMModule under which the table was measured; "auto" selects triton on these GPUs.
_TRAINER = {"accelerator": GPU, "precision": ("bf16-mixed",)}
_MODULE = {"backend": ("auto", "triton", None), "gradient_checkpointing": ("none", None), "compile": (False, None)}


def stored_rates(config: Config, network: nn.Module, batch: BatchPlan) -> dict[str, tuple[float, str]]:
    """Return images/s over all devices and their source by kind of GPU; empty if this training was not measured.

    Args:
        config: of the training.
        network: of the module that is trained.
        batch: its division over devices. The rate of the largest measured micro-batch within its own counts.
    """
    preset, options = _preset(network), config.init_args("model")
    as_measured = all(config.trainer.get(name) in values for name, values in _TRAINER.items())
    if preset is None or not as_measured or any(options.get(name) not in values for name, values in _MODULE.items()):
        return {}
    rates = {}
    for gpu, presets in _TABLE["measured"].items():
        sizes = presets[preset]
        if batch.world_size > 1:  # the host launches each kernel, which limits small micro-batches
            sizes = sizes | _TABLE["without_graph"].get(gpu, {}).get(preset, {})
        size = max((size for size in sizes if size <= batch.micro_batch_size), default=min(sizes))
        rates[gpu] = sizes[size] * batch.world_size, f"measured on one {gpu} with {size} images: {_TABLE['record']}"
    for gpu, (reference, ratio) in _TABLE["estimated"].items():
        rates[gpu] = rates[reference][0] * ratio, f"estimated as {ratio} of {reference}"
    return rates


def _preset(network: nn.Module) -> str | None:
    """Return the name of the network's size; the number of classes hardly changes the speed."""
    config = network.config
    if not isinstance(config, AiMConfig):
        return None
    return next((name for name in PRESETS if replace(config, num_classes=1000) == AiMConfig.preset(name)), None)
