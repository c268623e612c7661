"""Images logged after a validation, and their loggers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TINY_VQ
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from aim_lightning.callbacks.logging.image_logging import Reconstructions, alternate_rows, log_image
from aim_lightning.data.images.dataset import Images
from aim_lightning.models import VQModel


def trainer_with(*loggers, rank: int = 0) -> SimpleNamespace:
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=7))
    state = SimpleNamespace(fn="validate")
    return SimpleNamespace(sanity_checking=False, is_global_zero=rank == 0, loggers=loggers, fit_loop=loop, state=state)


def test_an_image_reaches_every_logger(tmp_path, capsys):
    calls = []
    wandb = SimpleNamespace(log_image=lambda key, images, step: calls.append((key, images[0].shape, step)))
    loggers = (wandb, CSVLogger(tmp_path, name="csv"), SimpleNamespace())
    image = torch.arange(72, dtype=torch.uint8).view(3, 4, 6)
    for _ in range(2):
        log_image(trainer_with(*loggers), "samples", image)
    assert calls == [("samples", (4, 6, 3), 7)] * 2
    file = tmp_path / "csv" / "version_0" / "images" / "samples-step=00000007.png"
    assert torch.equal(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1), image)
    assert capsys.readouterr().err.count("SimpleNamespace logs no images") == 1
    log_image(trainer_with(*loggers, rank=1), "samples", image)
    assert len(calls) == 2


def test_rows_of_originals_and_reconstructions_alternate():
    first = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1)
    rows = alternate_rows(first, first + 100, columns=3).flatten().tolist()
    assert rows == [0, 1, 2, 100, 101, 102, 3, 4, 255, 103, 104, 255]


@pytest.mark.parametrize(("limit", "shown"), [(16, range(9)), (3, (0, 4, 8)), (1, (0,))])
def test_reconstructed_images_are_evenly_spaced(tmp_path, limit, shown):
    """A validation set of class directories is sorted by class, and all classes are shown."""
    for i in range(9):
        path = tmp_path / "val" / f"class{i // 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(path)
    callback = Reconstructions(num_images=limit)
    callback.images, callback.run_dir = Images("", str(tmp_path / "val"), image_size=16), str(tmp_path / "run")
    trainer = trainer_with()
    module = SimpleNamespace(network=VQModel(TINY_VQ).eval(), device=torch.device("cpu"))
    callback.on_validation_epoch_end(trainer, module)
    with Image.open(tmp_path / "run" / "samples" / "reconstructions.png") as grid:
        columns, rows = min(8, len(shown)), -(-len(shown) // 8)
        height, left = grid.height // (2 * rows), grid.width - columns * (16 * 8 + 2)
        tiles = [(left + 64 + i % 8 * 130, (i // 8 * 2) * height + 64) for i in range(len(shown))]
        assert [grid.getpixel(tile) for tile in tiles] == [(20 * i, 0, 0) for i in shown]
