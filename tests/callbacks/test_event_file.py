"""TensorBoard's file on a disk that fills up and gets room again."""

import resource

import pytest
from integration.tiny import scalars

from aim_lightning.callbacks.logging import tensorboard_writer
from aim_lightning.callbacks.logging.tensorboard_writer import RunWriter


@pytest.fixture
def disk():
    """Call it with the most bytes that a file may have; None = as many as it likes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, before if size is None else (size, before[1]))

    yield limit
    limit(None)


def log(writer, steps):
    for step in steps:
        writer.add_scalar("loss", float(step), step)
        writer.flush()


def test_nothing_is_made_before_the_first_flush(tmp_path):
    writer = RunWriter(str(tmp_path / "run"))
    writer.add_scalar("loss", 1.0, 0)
    assert not (tmp_path / "run").exists()
    writer.close()
    assert scalars(tmp_path / "run") == {"loss": [(0, 1.0)]}


def test_what_a_full_disk_did_not_take_is_there_once_it_has_room(tmp_path, disk, capsys):
    writer = RunWriter(str(tmp_path))
    log(writer, range(3))
    (file,) = tmp_path.iterdir()
    whole = file.stat().st_size
    for room in (0, 1, 30):  # half a record does not stay
        disk(whole + room)
        log(writer, range(3 + room, 4 + room))
        assert file.stat().st_size in (whole, whole + room) and len(scalars(tmp_path)["loss"]) == 3
    assert capsys.readouterr().err.count("cannot be written (File too large); its events wait for room") == 1
    disk(None)
    log(writer, [50])
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [0, 1, 2, 3, 4, 33, 50]


def test_a_bound_on_what_waits_in_memory(tmp_path, disk, capsys, monkeypatch):
    monkeypatch.setattr(tensorboard_writer, "MOST_WAITING", 500)
    writer = RunWriter(str(tmp_path))
    disk(0)
    log(writer, range(100))
    assert len(writer._events.waiting) < 600 and capsys.readouterr().err.count("get a hole") == 1
    disk(None)
    log(writer, [200, 201])
    found = [step for step, _ in scalars(tmp_path)["loss"]]
    assert found[:5] == [0, 1, 2, 3, 4] and found[-1] == 201


def test_a_later_start_replaces_steps(tmp_path, monkeypatch):
    log(RunWriter(str(tmp_path)), range(6))
    monkeypatch.setattr(tensorboard_writer.time, "time", lambda: 4e9)  # its name comes later
    second = RunWriter(str(tmp_path), purge_step=3)
    log(second, [3])
    assert scalars(tmp_path)["loss"] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
