"""A whole AiM experiment small enough to be trained many times in a test."""

from pathlib import Path

from helpers import TINY, write_tokens

CONFIG = """
experiment: tiny
runs_root: {root}/runs
seed_everything: 3
model:
  class_path: aim_lightning.modules.aim.AiMModule
  init_args:
    network: {{d_model: 32, n_layer: 2, vocab_size: 16, num_classes: 3, num_tokens: 4, adaln: group, num_groups: 2,
      d_state: 8, headdim: 16, token_dropout: 0.2, mixer_dropout: 0.2}}
    optimizer: {{base_learning_rate: 0.1, warmup_steps: 3, schedule: cosine}}
    label_dropout: 0.3
    global_batch_size: ${{data.init_args.global_batch_size}}
    seed: ${{seed_everything}}
data:
  class_path: aim_lightning.data.tokens.datamodule.TokenDataModule
  init_args: {{path: {root}/tokens, global_batch_size: 8, val_batch_size: 8, window_rows: 30, seed: "${{seed_everything}}"}}
callbacks:
  ema: {{class_path: aim_lightning.callbacks.training.ema.EMA, init_args: {{decay: 0.8}}}}
  throughput: {{class_path: aim_lightning.callbacks.logging.throughput.Throughput}}
  page: {{class_path: aim_lightning.callbacks.logging.tensorboard.TensorBoardPage}}
  checkpoints: {{class_path: aim_lightning.callbacks.training.checkpoints.Checkpoints, init_args: {{every_n_steps: 4, keep_last: 3}}}}
logger:
  tensorboard: {{class_path: lightning.pytorch.loggers.TensorBoardLogger}}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 22
  max_epochs: -1
  gradient_clip_val: 1.0
  log_every_n_steps: 1
  check_val_every_n_epoch: null
  val_check_interval: 6
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
"""


def write_experiment(root: Path, views: int = 2, tokenizer_hash: str = "none") -> Path:
    """Token shards (61 rows: 7 steps an epoch) and the experiment's file."""
    write_tokens(root / "tokens" / "train", [25, 20, 16], views=views, config=TINY, tokenizer_hash=tokenizer_hash)
    write_tokens(root / "tokens" / "val", [19], views=views, config=TINY, tokenizer_hash=tokenizer_hash, seed=1)
    path = root / "tiny.yaml"
    path.write_text(CONFIG.format(root=root))
    return path


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """All TensorBoard scalars of a run as (step, value), as TensorBoard itself shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
