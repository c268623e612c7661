"""Images logged after a validation, and their loggers."""

from types import SimpleNamespace

import torch
from helpers import TINY_VQ
from PIL import Image

from aim_lightning.callbacks.logging.image_logging import Reconstructions, log_image
from aim_lightning.data.images.dataset import Images
from aim_lightning.models import VQModel


def trainer_with(*loggers, rank: int = 0) -> SimpleNamespace:
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=7))
    state = SimpleNamespace(fn="validate")
    return SimpleNamespace(sanity_checking=False, is_global_zero=rank == 0, loggers=loggers, fit_loop=loop, state=state)


def test_an_image_reaches_every_logger_that_supports_images():
    calls = []
    wandb = SimpleNamespace(log_image=lambda key, images, step: calls.append((key, images[0].shape, step)))
    image = torch.zeros(3, 4, 6, dtype=torch.uint8)
    log_image(trainer_with(wandb, SimpleNamespace(name="csv")), "samples", image)
    assert calls == [("samples", (4, 6, 3), 7)]
    log_image(trainer_with(wandb, rank=1), "samples", image)
    assert len(calls) == 1


def test_fewer_validation_images_than_columns(tmp_path):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (16, 16)).save(tmp_path / "val" / "cat" / f"{i}.png")
    callback = Reconstructions(num_images=16)
    callback.images, callback.run_dir = Images("", str(tmp_path / "val"), image_size=16), str(tmp_path / "run")
    trainer = trainer_with()
    module = SimpleNamespace(network=VQModel(TINY_VQ).eval(), device=torch.device("cpu"))
    callback.on_validation_epoch_end(trainer, module)
    assert Image.open(tmp_path / "run" / "samples" / "reconstructions.png").height > 2 * 16
