"""Files that training can do without."""

import errno

import pytest
import torch

from aim_lightning.callbacks.logging import image_logging
from aim_lightning.utils.disk_errors import tolerate_disk_errors


def test_a_full_disk_is_told_once_a_file(capsys):
    for name in ("a.json", "a.json", "b.json"):
        with tolerate_disk_errors(name):
            raise OSError(errno.ENOSPC, "No space left on device")
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and "warning: a.json cannot be written (No space left on device)" in err
    with pytest.raises(ValueError), tolerate_disk_errors("c.json"):
        raise ValueError


def test_images_that_the_disk_does_not_take_end_nothing(tmp_path, capsys):
    (tmp_path / "samples").touch()  # no directory can be made here
    image_logging._keep(torch.zeros(3, 4, 4, dtype=torch.uint8), tmp_path / "samples" / "grid.png")
    assert "grid.png cannot be written" in capsys.readouterr().err
