"""A tokenizer with the same weights in every process, slow enough to be interrupted."""

import os
import time

import torch
from helpers import TINY_VQ

from aim_lightning.models import VQModel


class SlowTokenizer(VQModel):
    """A tokenizer that sleeps for TOKENIZER_PAUSE seconds per batch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(TINY_VQ)

    def encode(self, images_BCHW):
        time.sleep(float(os.environ.get("TOKENIZER_PAUSE", "0")))
        return super().encode(images_BCHW)
