"""A small network that generates 4x4 images quickly, as a run and in the published layout."""

from pathlib import Path

import pytest
from helpers import TINY, random_aim, write_tokens
from weights.makers import SMALL_VQ, run_content

from aim_lightning.checkpoint.io import write_checkpoint
from aim_lightning.cli.main import main
from aim_lightning.models import VQModel
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
    """Build networks with random weights whose images vary."""
    aim, vq = random_aim(seed=seed), VQModel(SMALL_VQ)
    for parameter in vq.decoder.parameters():
        parameter.data *= 1.5
    return AiMPipeline(aim, vq)


def write_inputs(root: Path) -> None:
    """Write published weights and token shards, which CONFIG names for a training."""
    pipeline = networks()
    pipeline.save_pretrained(root / "published")
    for split in ("train", "val"):
        write_tokens(root / "tokens" / split, [40], config=TINY, tokenizer_hash=pipeline.tokenizer.weights_hash)


def write_step(
    root: Path, step: int, run: str = "main", seed: int = 0, max_steps: int | None = None, **model_options
) -> Path:
    """Write one more checkpoint of a run, as a training up to `max_steps` does, and return its path."""
    from aim_lightning.cli.arguments import Arguments
    from aim_lightning.cli.config import read

    network = networks(seed).aim
    values = read(Arguments([root / "small.yaml"], [("run", run)])).values
    values["trainer"] |= {"max_steps": max_steps}
    values["model"]["init_args"] |= model_options
    names = {"class_names": ["red", "green", "blue"], "tokenizer_hash": None}
    trainer = {"global_step": step, "weight_groups": ["network"], "callbacks": {}, "loops": {}}
    content = run_content(network, network.state_dict(), configuration=values, trainer=trainer, **names)
    path = root / "runs" / "small" / run / "checkpoints" / f"step={step:08d}.ckpt"
    write_checkpoint(content, path)
    return path


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    """Create a directory with small.yaml, published weights, and a run of step 7; import `config` too."""
    root = tmp_path_factory.mktemp("small")
    networks().save_pretrained(root / "published")
    (root / "small.yaml").write_text(CONFIG.format(root=root))
    write_step(root, 7)
    return root


@pytest.fixture(scope="session")
def config(workspace) -> Path:
    """Return the configuration file of the small run."""
    return workspace / "small.yaml"


def words(command: str, config: Path, *options) -> list[str]:
    """Return the command line of a command that scores samples."""
    return list(map(str, (command, "--config", config, "--cache", config.parent / "cache", *options)))


def call(command: str, config: Path, *options) -> int:
    """Run a command that scores samples and return its exit code."""
    return main(words(command, config, *options))


def last_error(capsys) -> str:
    """Return the last line of standard error, which must be an error of one line."""
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def refused(capsys, command: str, config: Path, *options) -> str:
    """Run a command that must end with exit code 2 and return its line of error."""
    assert call(command, config, *options) == 2
    return last_error(capsys)
