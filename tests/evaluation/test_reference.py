"""What `--reference` takes, and with which geometry."""

import numpy as np
import pytest
import torch
from data.test_imagenet import TRAIN, root  # noqa: F401
from PIL import Image

from aim_lightning.data.images.pictures import Pictures
from aim_lightning.evaluation.reference import Reference
from aim_lightning.utils.errors import UserError


@pytest.fixture
def classes(tmp_path):
    """Two class folders of 20x30 pictures."""
    rng = np.random.default_rng(0)
    for name in ("blue", "red"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


@pytest.mark.parametrize("geometry", [{"crop": "adm_center"}, {"resize": 10, "pad": 1}, {}])
def test_class_folders_get_the_experiments_whole_geometry(classes, geometry):
    pictures = Pictures(str(classes), str(classes), image_size=8, **geometry)
    given, own = Reference(classes, pictures), Reference(None, pictures)
    assert given.source() == own.source() and given.image_size() == (8, 8)
    assert torch.equal(given.list.images(range(6)), own.list.images(range(6)))


def test_an_archive_of_imagenet(root):  # noqa: F811
    pictures = Pictures(str(root), str(root), image_size=8, crop="adm_center")
    reference = Reference(root / TRAIN, pictures)
    assert reference.image_size() == (8, 8) and len(reference.list) == 8
    with pytest.raises(UserError, match="needs a geometry"):
        Reference(root / TRAIN, None)


def test_what_is_no_reference(tmp_path):
    (tmp_path / "notes.txt").touch()
    for name, words in (("notes.txt", "of no known kind; give"), ("none.tar", "does not exist; give")):
        with pytest.raises(UserError, match=words):
            Reference(tmp_path / name, None)
