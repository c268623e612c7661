"""A tokenizer with the same weights in every process, slow enough to be interrupted."""

import os
import time

import torch
from helpers import TINY_VQ

from aim_lightning.models import VQModel

CONFIG = """
experiment: tokens
images: {train: data/fashion_mnist_mini/val, val: data/fashion_mnist_mini/val, image_size: 16, resize: 16}
tokenizer: {class_path: slurm_tokenizer.SlowTokenizer}
data:
  class_path: aim_lightning.data.images.datamodule.ImageDataModule
  init_args: {images: "${images}", global_batch_size: 8}
trainer: {accelerator: cpu}
"""


class SlowTokenizer(VQModel):
    """A tokenizer that sleeps for TOKENIZER_PAUSE seconds per batch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(TINY_VQ)

    def encode(self, images_BCHW):
        time.sleep(float(os.environ.get("TOKENIZER_PAUSE", "0")))
        return super().encode(images_BCHW)
