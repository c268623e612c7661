"""A generator that draws 4x4 images in no time, as a run and in the published layout."""

from pathlib import Path

import pytest
import torch
from helpers import TINY, TINY_VQ

from aim_lightning.checkpoint.io import write_checkpoint
from aim_lightning.models import AiM, VQModel
from aim_lightning.pipeline import AiMPipeline

CONFIG = """
experiment: small
runs_root: {root}/runs
tokenizer: {root}/published
model:
  class_path: aim_lightning.modules.aim.AiMModule
  init_args:
    network: {{d_model: 32, n_layer: 2, vocab_size: 16, num_classes: 3, num_tokens: 4, adaln: group, num_groups: 2,
      d_state: 8, headdim: 16}}
    optimizer: {{base_learning_rate: 0.1}}
    global_batch_size: ${{data.init_args.global_batch_size}}
data:
  class_path: aim_lightning.data.tokens.datamodule.TokenDataModule
  init_args: {{path: {root}/tokens, global_batch_size: 8}}
images: {{train: data/fashion_mnist_mini/val, val: data/fashion_mnist_mini/val, image_size: 4, resize: 4}}
features: {{class_path: aim_lightning.metrics.features.EfficientNetLite0Features, init_args: {{size: 32}}}}
sampling: {{cfg_scale: 1.5, batch_size: 16}}
trainer: {{accelerator: cpu, devices: 1}}
"""


def networks(seed: int = 0) -> AiMPipeline:
    """Random weights that draw something."""
    torch.manual_seed(seed)
    aim = AiM(TINY)
    for parameter in aim.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    vq = VQModel(TINY_VQ.__class__(**{**TINY_VQ.__dict__, "image_size": 4}))
    for parameter in vq.decoder.parameters():
        parameter.data *= 1.5
    return AiMPipeline(aim, vq)


def write_small(root: Path, seed: int = 0) -> Path:
    """root/small.yaml, root/published and the run root/runs/small/main with its checkpoint of step 7."""
    pipeline = networks(seed)
    pipeline.save_pretrained(root / "published")
    path = root / "small.yaml"
    path.write_text(CONFIG.format(root=root))
    write_step(root, pipeline.aim, 7)
    return path


def write_step(
    root: Path, aim: AiM, step: int, run: str = "main", max_steps: int | None = None, **model_options
) -> Path:
    """Write one more checkpoint of the run, as a training up to `max_steps` does."""
    from aim_lightning.cli.arguments import Arguments
    from aim_lightning.cli.config import read

    values = read(Arguments([root / "small.yaml"], [("run", run)])).values
    values["trainer"] |= {"max_steps": max_steps}
    values["model"]["init_args"] |= model_options
    content = {
        "network": aim.state_dict(),
        "ema": {"steps": step, "network": aim.state_dict()},
        "optimizers": [],
        "schedulers": [],
        "cursor": {"epoch": 0, "batch": 0},
        "data": None,
        "random_state": [],
        "configuration": values,
        "class_names": ["red", "green", "blue"],
        "tokenizer_hash": None,
        "trainer": {"global_step": step, "weight_groups": ["network"], "callbacks": {}, "loops": {}},
    }
    path = root / "runs" / "small" / run / "checkpoints" / f"step={step:08d}.ckpt"
    write_checkpoint(content, path)
    return path


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Return the directory that contains the small run; tests import it together with `config`."""
    return tmp_path_factory.mktemp("small")


@pytest.fixture(scope="session")
def config(place):
    """Return the configuration file of the small run."""
    return write_small(place)
