"""The files that `aim-lightning dataset` writes beside the shards: images and an experiment for each stage."""

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_text

if TYPE_CHECKING:
    from aim_lightning.data.images.directory_split import SplitReport

DOWNSAMPLING = 4  # pixels a code, of configs/model/vq_tiny.yaml
EPOCHS, FEWEST_STEPS, MOST_STEPS = 50, 1500, 20000

IMAGES = """# {rows[train]} + {rows[val]} images of {classes} classes.
images:
  train: data/{name}/train
  val: data/{name}/val
  image_size: {size}
  crop: adm_center
"""
# `make stages` finds the options of `tokenize` behind "# tokenize:".
TOKENIZER = """# Stage 1 on {name}: {size}x{size} pixels become {side}x{side} codes.
# tokenize: {views}
include:
  - ../configs/images/{name}.yaml
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
    optimizer: {{base_learning_rate: 1.6e-2}} # per 256 images: 2e-3 at a batch of 32
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
AIM = """# Stage 2 on {name}; 20 crops of each image and dropout keep a few images from being learnt by heart.
include:
  - ../configs/images/{name}.yaml
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
# The first line of each file: a later `make dataset` tells by the hash whether anyone has changed the rest.
MARK = "# Made by `make dataset` (rest of the file: {digest}), which rewrites it as long as nobody edits it."
MARKED = re.compile(re.escape(MARK).replace(re.escape("{digest}"), "([0-9a-f]{16})"))


def file_names(name: str) -> tuple[str, str, str]:
    """Of the image section and the experiments of both stages."""
    return f"configs/images/{name}.yaml", f"experiments/{name}_tokenizer.yaml", f"experiments/{name}_aim.yaml"


def views_of(size: int) -> str:
    """Options of `tokenize` that give 20 different crops of images of so many pixels a side, 8 at least."""
    return f"--views ten_crop --crop_range {'1.1,1.05' if size >= 20 else '1.25,1.125'}"


def experiment_files(name: str, size: int, report: "SplitReport") -> dict[str, str]:
    """Text of the image section and of one experiment a stage, with sizes for some hundred images a class."""
    train, side = report.rows["train"], size // DOWNSAMPLING
    batch = min(32, 1 << (train.bit_length() - 1))
    steps = min(max(EPOCHS * train // batch, FEWEST_STEPS), MOST_STEPS) // 100 * 100
    facts = {
        **{"name": name, "size": size, "side": side, "tokens": side**2, "rows": report.rows},
        **{"classes": len(report.class_names), "codebook": 512, "shown": min(16, report.rows["val"])},
        **{"batch": batch, "steps": steps, "every": steps // 5, "views": views_of(size)},
    }
    texts = (template.format(**facts) for template in (IMAGES, TOKENIZER, AIM))
    return dict(zip(file_names(name), texts, strict=True))


def refuse_files_of_others(name: str) -> None:
    """Raises UserError if a file that would be written exists and is not as `write_marked` left it."""
    for path in map(Path, file_names(name)):
        if not path.exists():
            continue
        first, _, rest = path.read_text(encoding="utf-8", errors="replace").partition("\n")
        mark = MARKED.fullmatch(first)
        if not mark:
            raise UserError(f"{path} exists and is not one that `make dataset` made; take another NAME, or remove it")
        if mark[1] != _digest(rest):
            raise UserError(
                f"{path} was edited since `make dataset` made it; rename it to keep your version, or remove it"
            )


def write_marked(path: str, text: str) -> None:
    """Write a file with the mark by which `refuse_files_of_others` knows it again."""
    write_text(path, f"{MARK.format(digest=_digest(text))}\n{text}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
