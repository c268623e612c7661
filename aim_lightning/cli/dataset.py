"""`aim-lightning dataset`: one's own pictures as shards, and an experiment for each stage on them."""

import argparse
from pathlib import Path

from aim_lightning.data.images.split import SplitReport, make_shards
from aim_lightning.runs.directory import NAME
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_text

DOWNSAMPLING = 4  # pixels a code, of configs/model/vq_tiny.yaml
EPOCHS, FEWEST_STEPS, MOST_STEPS = 50, 1500, 20000

PICTURES = """# {rows[train]} + {rows[val]} pictures of {classes} classes, made by `make dataset FOLDER=… NAME={name}`.
pictures:
  train: data/{name}/train
  val: data/{name}/val
  image_size: {size}
  crop: adm_center
"""
TOKENIZER = """# Stage 1 on {name}: {size}x{size} pixels become {side}x{side} codes.
# Made by `make dataset`; change what you like.
include:
  - ../configs/pictures/{name}.yaml
  - ../configs/model/vq_tiny.yaml
  - ../configs/data/images.yaml
  - ../configs/trainer/cpu.yaml
  - ../configs/callbacks/tokenizer.yaml
  - ../configs/logger/tensorboard.yaml
  - ../configs/features/effnet_lite0.yaml
experiment: {name}_tokenizer
model:
  init_args:
    network: {{codebook_size: {codebook}, base_channels: 32}}
    optimizer: {{learning_rate: 1.6e-2}} # per 256 images: 2e-3 at a batch of 32
data:
  init_args:
    global_batch_size: {batch}
    train_crop: adm_random
    num_workers: 2
callbacks:
  ema:
    init_args: {{decay: 0.99}}
  reconstructions:
    init_args: {{num_images: {shown}}}
  checkpoints:
    init_args: {{every_n_steps: 500}}
trainer:
  accelerator: auto
  max_steps: {steps}
  max_epochs: -1
  check_val_every_n_epoch: null
  val_check_interval: {every}
"""
AIM = """# Stage 2 on {name}; 20 crops of each picture and dropout keep a few pictures from being learnt by heart.
# Made by `make dataset`; change what you like.
include:
  - ../configs/pictures/{name}.yaml
  - ../configs/model/aim_tiny.yaml
  - ../configs/data/tokens.yaml
  - ../configs/trainer/cpu.yaml
  - ../configs/callbacks/aim.yaml
  - ../configs/logger/tensorboard.yaml
  - ../configs/features/effnet_lite0.yaml
experiment: {name}_aim
tokenizer: ${{runs_root}}/{name}_tokenizer/main
model:
  init_args:
    network: {{vocab_size: {codebook}, num_classes: {classes}, num_tokens: {tokens}, d_model: 128, n_layer: 4}}
data:
  init_args:
    path: data/tokens/{name}_tokenizer
    global_batch_size: {batch}
    num_workers: 0
sampling:
  cfg_scale: 2.0
callbacks:
  ema:
    init_args: {{decay: 0.99}}
  sample_metrics:
    init_args: {{num_samples: 2000}}
  checkpoints:
    init_args: {{every_n_steps: 500}}
trainer:
  accelerator: auto
  max_steps: {steps}
  max_epochs: -1
  gradient_clip_val: 1.0
  check_val_every_n_epoch: null
  val_check_interval: {every}
"""


def run(document: None, options: argparse.Namespace) -> int:
    """Writes data/NAME, configs/pictures/NAME.yaml and experiments/NAME_{tokenizer,aim}.yaml."""
    name, size = options.name, options.image_size
    if not NAME.fullmatch(name):
        raise UserError(f"the data set is called {name!r}; use letters, digits, '.', '_' and '-'")
    if size < 2 * DOWNSAMPLING or size % DOWNSAMPLING:
        raise UserError(f"--image_size is {size}; give a multiple of {DOWNSAMPLING}, for example 64")
    for needed in ("configs/pictures", "experiments"):
        if not Path(needed).is_dir():
            raise UserError(f"there is no {needed} here; run this in the root of the checkout")
    out = Path("data") / name
    report = make_shards(Path(options.folder), out, options.val_fraction, 2 * size, options.on_error)
    train, val = report.rows["train"], report.rows["val"]
    fewest, most = min(report.train_per_class), max(report.train_per_class)
    print(f"{out}: {train} training and {val} validation pictures, {fewest} to {most} training pictures a class")
    if report.skipped:
        number, first = len(report.skipped), report.skipped[0][0]
        print(f"{number} unreadable pictures left out (first: {first}); {out}/train/manifest.json lists them")
    for path, text in experiment_files(name, size, report).items():
        _write(Path(path), text)
    print(f"next: make stages NAME={name} trains both stages, or one by one:")
    print(f"  make train EXP={name}_tokenizer")
    print(f"  make tokenize EXP={name}_tokenizer ARGS='--views ten_crop --crop_range 1.1,1.05'")
    print(f"  make train EXP={name}_aim")
    return 0


def experiment_files(name: str, size: int, report: SplitReport) -> dict[str, str]:
    """Text of the picture section and of one experiment a stage, with sizes for some hundred pictures a class."""
    train, side = report.rows["train"], size // DOWNSAMPLING
    batch = min(32, 1 << (train.bit_length() - 1))
    steps = min(max(EPOCHS * train // batch, FEWEST_STEPS), MOST_STEPS) // 100 * 100
    facts = {
        **{"name": name, "size": size, "side": side, "tokens": side**2, "rows": report.rows},
        **{"classes": len(report.class_names), "codebook": 512, "shown": min(16, report.rows["val"])},
        **{"batch": batch, "steps": steps, "every": steps // 5},
    }
    return {
        f"configs/pictures/{name}.yaml": PICTURES.format(**facts),
        f"experiments/{name}_tokenizer.yaml": TOKENIZER.format(**facts),
        f"experiments/{name}_aim.yaml": AIM.format(**facts),
    }


def _write(path: Path, text: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") != text:
        print(f"{path} exists and is left as it is; delete it to have it made anew")
        return
    write_text(path, text)
    print(f"wrote {path}")
