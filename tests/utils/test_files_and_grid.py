"""Atomic files, tolerated disk errors and labelled grids."""

import errno
import os
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import python
from helpers import assert_user_error
from PIL import Image

from aim_lightning.callbacks.logging import image_logging
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import (
    atomic_directory,
    atomic_path,
    read_json,
    remove_abandoned,
    tolerate_disk_errors,
    write_json,
)
from aim_lightning.utils.grid import captioned_grid, labelled_grid, save_png


def test_temporary_files_of_tests_and_their_processes_are_in_a_directory_of_pytest(tmp_path_factory):
    directory = str(tmp_path_factory.getbasetemp() / "t")
    assert tempfile.gettempdir() == directory
    assert python("-c", "import tempfile; print(tempfile.gettempdir())").stdout.strip() == directory


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"ä": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path, "file") == {"ä": 1}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("path", [".", "..", "/", "", "{here}", "inner/.."])
def test_the_current_directory_is_not_replaced(tmp_path, monkeypatch, path):
    (tmp_path / "a" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    refused = pytest.raises(UserError, match="the current directory or above it")
    with refused, atomic_directory(path.format(here=Path.cwd())):
        pytest.fail("must be refused before anything is written")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "inner"]


def test_the_new_name_is_on_disk_when_a_write_returns(tmp_path, monkeypatch):
    """Check the order of flushes: older checkpoints are removed right after the write."""
    path, flushed, error = tmp_path / "a.json", [], None

    def fsync(descriptor):
        directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        flushed.append((directory, path.exists()))
        if directory and error:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(path, 1)
    assert flushed == [(False, False), (True, True)]
    error = errno.EINVAL  # a file system that cannot flush directories
    write_json(path, 2)
    error = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        write_json(path, 3)


def test_reading_json_names_role_and_file(tmp_path):
    assert_user_error(r"manifest .*nothing.json does not exist", read_json, tmp_path / "nothing.json", "manifest")
    (tmp_path / "bad.json").write_text("{")
    assert_user_error(r"bad.json is not readable JSON", read_json, tmp_path / "bad.json", "manifest")


def test_grid_arranges_images_in_rows_and_enlarges_small_ones(tmp_path):
    images = torch.stack([torch.full((3, 8, 8), 40 * i, dtype=torch.uint8) for i in range(6)])
    grid = labelled_grid(images, 3, ["bag", "ankle boot"])
    assert grid.dtype == torch.uint8 and grid.shape[1] == 2 * 130
    width = grid.shape[2] - 3 * 130
    for i in range(6):
        assert (grid[:, i // 3 * 130 + 60, width + i % 3 * 130 + 60] == 40 * i).all()
    assert labelled_grid(images, 3, []).shape[2] == 3 * 130
    save_png(grid, tmp_path / "x" / "grid.png")
    assert Image.open(tmp_path / "x" / "grid.png").size == (grid.shape[2], grid.shape[1])


def test_row_names_are_a_quarter_of_a_row_high_and_cut_to_the_margin():
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    margins = {}
    for name in ("Hg", "great white shark, white shark, man-eater"):
        grid = labelled_grid(images, 1, [name, ""])
        margins[name] = grid[0, :130, : grid.shape[2] - 130]
    rows = (margins["Hg"] < 128).any(1).nonzero().flatten()
    assert 130 / 4 <= rows[-1] - rows[0] + 1 <= 130 / 2
    assert [margin.shape[1] > 2 * 128 for margin in margins.values()] == [False, True]
    assert all(margin.shape[1] <= 2.5 * 128 + 10 for margin in margins.values())


@pytest.mark.parametrize("grid", [lambda *words: labelled_grid(words[0], 1, words[1]), captioned_grid])
def test_letters_beyond_ascii_are_shown(grid):
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    shapes = {grid(images, [letter]).numpy().tobytes() for letter in "öäßéд"}
    assert len(shapes) == 5  # a font without a letter shows the same box for all


def test_temporary_files_of_dead_processes_and_old_ones_are_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    host, alive = socket.gethostname(), os.getpid()
    names = {
        "dead": f".a.tar.{host}.{dead.pid}-0a1b2c3d.tmp",
        "alive": f".a.tar.{host}.{alive}-0a1b2c3d.tmp",
        "elsewhere": f".a.tar.other-{host}.{dead.pid}-0a1b2c3d.tmp",
        "old": f".b.tar.elsewhere.{dead.pid}-0a1b2c3d.tmp",
        "complete": "a.tar",
    }
    for name in names.values():
        (tmp_path / name).touch()
    os.utime(tmp_path / names["old"], (0, 0))
    with atomic_path(tmp_path / "c.tar") as temporary:
        temporary.touch()
        remove_abandoned(tmp_path)
        kept = {temporary.name, names["alive"], names["elsewhere"], names["complete"]}
        assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_failed_write_names_the_final_file(tmp_path, file_limit):
    path = tmp_path / "a.json"
    with pytest.raises(OSError) as writing:
        file_limit(0)
        write_json(path, [0])
    file_limit(None)
    with pytest.raises(OSError) as renaming, atomic_path(path):
        pass
    with pytest.raises(OSError) as reading, atomic_path(path):
        Path("absent").read_text()
    assert writing.value.filename == renaming.value.filename == str(path) and reading.value.filename == "absent"


def test_a_failed_removal_does_not_hide_the_error(tmp_path, monkeypatch):
    def read_only(path, **_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(OSError, match="no room"), atomic_path(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "no room")


def test_a_full_disk_is_reported_once_per_file(capsys):
    for name in ("a.json", "a.json", "b.json"):
        with tolerate_disk_errors(name):
            raise OSError(errno.ENOSPC, "No space left on device")
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and "warning: a.json cannot be written (No space left on device)" in err
    with pytest.raises(ValueError), tolerate_disk_errors("c.json"):
        raise ValueError


def test_training_continues_when_an_image_cannot_be_written(tmp_path, capsys):
    (tmp_path / "samples").touch()  # no directory can be created here
    image_logging._save(torch.zeros(3, 4, 4, dtype=torch.uint8), tmp_path / "samples" / "grid.png")
    assert "grid.png cannot be written" in capsys.readouterr().err
