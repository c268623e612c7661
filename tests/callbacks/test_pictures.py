"""Images shown after a validation."""

from types import SimpleNamespace

import torch
from helpers import TINY_VQ
from PIL import Image

from aim_lightning.callbacks.logging.image_logging import Reconstructions
from aim_lightning.data.images.dataset import Images
from aim_lightning.models import VQModel


def test_fewer_validation_images_than_columns(tmp_path):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (16, 16)).save(tmp_path / "val" / "cat" / f"{i}.png")
    callback = Reconstructions(num_images=16)
    callback.images, callback.run_dir = Images("", str(tmp_path / "val"), image_size=16), str(tmp_path / "run")
    trainer = SimpleNamespace(sanity_checking=False, is_global_zero=True, loggers=[], global_step=1)
    module = SimpleNamespace(network=VQModel(TINY_VQ).eval(), device=torch.device("cpu"))
    callback.on_validation_epoch_end(trainer, module)
    assert Image.open(tmp_path / "run" / "samples" / "reconstructions.png").height > 2 * 16
