"""A whole tokenizer experiment with a discriminator, small enough to be trained many times in a test."""

from pathlib import Path

CONFIG = """
include: [{configs}/callbacks/tokenizer.yaml, {configs}/features/effnet_lite0.yaml]
experiment: tiny_tokenizer
runs_root: {root}/runs
seed_everything: 3
images: {{train: data/fashion_mnist_mini/val, val: data/fashion_mnist_mini/val, image_size: 16, resize: 16}}
model:
  class_path: aim_lightning.modules.tokenizer.TokenizerModule
  init_args:
    network: {{image_size: 16, codebook_size: 256, base_channels: 8, channel_multipliers: [1, 2], num_res_blocks: 1,
      z_channels: 8, norm_groups: 4, dropout: 0.1, usage_window: 1024}}
    optimizer: {{base_learning_rate: 0.1, warmup_steps: 2, schedule: cosine}}
    loss: {{entropy_weight: 0.01}}
    adversarial: {{start_step: 2, adaptive: true, discriminator: {{num_layers: 1, channels: 8}}}}
    codebook_init: data
    revival: {{every_n_steps: 3}}
    global_batch_size: ${{data.init_args.global_batch_size}}
    seed: ${{seed_everything}}
data:
  class_path: aim_lightning.data.images.datamodule.ImageDataModule
  init_args: {{images: "${{images}}", global_batch_size: 8, val_batch_size: 50, seed: "${{seed_everything}}"}}
callbacks:
  ema: {{init_args: {{decay: 0.8}}}}
  reconstruction_metrics: {{init_args: {{cache_dir: {root}/cache, batch_size: 100}}}}
  checkpoints: {{init_args: {{every_n_steps: 1, keep_last: 9}}}}
logger:
  tensorboard: {{class_path: lightning.pytorch.loggers.TensorBoardLogger}}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 8
  max_epochs: -1
  log_every_n_steps: 1
  check_val_every_n_epoch: null
  val_check_interval: 4
  limit_val_batches: 2
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
"""


def write_experiment(root: Path, configs: Path) -> Path:
    """The experiment's file; the embedded validation images, shrunk to 16x16, serve both splits."""
    path = root / "tiny_tokenizer.yaml"
    path.write_text(CONFIG.format(root=root, configs=configs))
    return path
