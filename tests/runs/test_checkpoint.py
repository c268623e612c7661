"""Checkpoint files: round trips, damage, other versions, failed reads and writes."""

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, assert_user_error

from aim_lightning.checkpoint import checksum, io, torch_load
from aim_lightning.checkpoint.format import FORMAT, KEYS
from aim_lightning.checkpoint.io import CheckpointNotWritten, load_weights, read_checkpoint, write_checkpoint
from aim_lightning.models import AiM
from aim_lightning.runs.directory import RunDirectory, newest_checkpoint
from aim_lightning.runs.history import read_content
from aim_lightning.runs.resume_policy import Progress, RunContent
from aim_lightning.utils.errors import TransientError, UserError

CONTENT = {key: {} for key in KEYS} | {"network": {"w": torch.arange(5000.0)}}


WEIGHT = CONTENT["network"]["w"].numpy().tobytes()[:400]


@pytest.fixture
def path(tmp_path):
    """Write a checkpoint and return its path."""
    write_checkpoint(CONTENT, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


@pytest.fixture
def run(tmp_path):
    return RunDirectory("exp", "main", tmp_path)


def write_step(run, step, **content):
    path = run.checkpoint_directory / f"step={step:08d}.ckpt"
    write_checkpoint({**CONTENT, "trainer": {"global_step": step}, "cursor": {"epoch": 0}, **content}, path)


def flip(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_round_trip(path):
    assert torch.equal(read_checkpoint(path)["network"]["w"], CONTENT["network"]["w"])
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]


class Evil:
    def __reduce__(self):
        return (print, ("this code must not run",))


def test_damage_and_foreign_files_are_one_line(path, capsys):
    cases = {
        "damaged": path.read_bytes()[: path.stat().st_size // 2],
        "damaged or not a checkpoint": b"",
        "not a checkpoint": b"hello",
        "not a checkpoint (": pickle.dumps(Evil()),
    }
    for text, content in cases.items():
        path.write_bytes(content)
        assert text in str(assert_user_error("a.ckpt", read_checkpoint, path))
    assert capsys.readouterr().out == ""
    torch.save({"state_dict": {}}, path)
    assert_user_error("not written by this project", read_checkpoint, path)
    torch.save({"format": FORMAT, "network": {}}, path)
    assert_user_error("lacks ema, optimizers", read_checkpoint, path)
    assert_user_error("does not exist", read_checkpoint, path.with_name("none.ckpt"))


OTHER_VERSIONS = [
    ({"format": "aim_lightning.checkpoint/2"}, "has format 'aim_lightning.checkpoint/2', this version reads"),
    ({"format": "other"}, "was not written by this project"),
    ({"cursor": None}, "lacks cursor; use the version that wrote it"),
]


@pytest.mark.parametrize(("change", "match"), OTHER_VERSIONS)
def test_an_intact_checkpoint_of_another_version_is_refused_and_not_called_damaged(run, change, match):
    write_step(run, 4)
    newer = {key: value for key, value in {"format": FORMAT, **CONTENT, **change}.items() if value is not None}
    torch.save(newer, run.checkpoint_directory / "step=00000008.ckpt")
    with pytest.raises(torch_load.UnreadableFile, match=match) as error:
        read_content(run, {})
    assert not isinstance(error.value, torch_load.DamagedFile) and "damaged" not in str(error.value)
    assert len(run.checkpoints()) == 2


def test_no_error_advises_to_run_code(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "a.pt")
    torch.save({"x": Path("x")}, tmp_path / "b.pt")
    for name, reason in (("a.pt", "it is a TorchScript archive"), ("b.pt", "something else than tensors")):
        error = assert_user_error(reason, torch_load.read_pickle, tmp_path / name, "weights file")
        assert "weights_only" not in str(error)


def test_any_changed_bit_and_any_cut_is_noticed(path):
    """torch itself reads such a file without an error, unless its archive's structure changed."""
    content, rng = path.read_bytes(), np.random.default_rng(0)
    end = range(len(content) - 60, len(content))  # the end of the archive and the seal
    for position in [*rng.integers(0, len(content), 60).tolist(), *range(40), *end]:
        path.write_bytes(content)
        flip(path, position, int(rng.integers(8)))
        assert_user_error("damaged", read_checkpoint, path)
    for size in (1, 100, len(content) // 2, len(content) - 30, len(content) - 1):
        path.write_bytes(content[:size])
        assert_user_error("damaged", read_checkpoint, path)
    path.write_bytes(content.replace(WEIGHT, b"\1" + WEIGHT[1:]))
    assert not torch.equal(torch.load(path)["network"]["w"], CONTENT["network"]["w"])


def test_archives_without_a_seal_are_compared_member_by_member(path):
    torch.save({"format": FORMAT, **CONTENT}, path)
    assert torch.equal(read_checkpoint(path)["network"]["w"], CONTENT["network"]["w"])
    flip(path, path.read_bytes().index(WEIGHT))
    assert_user_error("damaged", read_checkpoint, path)


def test_a_file_that_reads_back_changed_does_not_replace_the_old_one(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(io, "drop_from_cache", lambda file: flip(file, file.stat().st_size // 2))
    with pytest.raises(CheckpointNotWritten, match="read back, it was damaged: its checksum differs"):
        write_checkpoint({**CONTENT, "cursor": {"epoch": 1}}, path)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def test_a_full_disk_is_named_with_its_free_space(path, file_limit):
    file_limit(9000)
    with pytest.raises(CheckpointNotWritten, match=r"could not be written \(File too large, [\d,]+ MiB free\)"):
        write_checkpoint(CONTENT, path)
    file_limit(None)
    assert "network" in read_checkpoint(path) and len(list(path.parent.iterdir())) == 1


def touch(run, *names):
    run.checkpoint_directory.mkdir(parents=True)
    for name in names:
        (run.checkpoint_directory / name).touch()


def test_damaged_checkpoints_after_a_step_are_set_aside(run):
    touch(run, *(f"step={step:08d}.ckpt" for step in (4, 8, 12)))
    with pytest.raises(TransientError, match=r"step=00000012\.ckpt has appeared since the start"):
        run.set_aside_newer(4, [run.checkpoint_directory / "step=00000008.ckpt"])
    assert len(run.checkpoints()) == 3
    names = run.set_aside_newer(8, [run.checkpoint_directory / "step=00000012.ckpt"])
    assert [path.name for path in names] == ["step=00000012.ckpt.damaged"]
    assert [path.name for path in run.checkpoints()] == ["step=00000008.ckpt", "step=00000004.ckpt"]


def test_leftovers_of_kills_are_removed_but_the_newest_damaged_one(run):
    kept = ["step=00000004.ckpt", "step=00000016.ckpt.damaged", "notes.txt", ".hidden"]
    touch(run, *kept, ".step=00000012.ckpt.77-abcd.tmp", "step=00000008.ckpt.damaged")
    (run.path / "best").mkdir()
    (run.path / "best" / ".fd=1.0-step=00000008.ckpt.77-abcd.tmp").touch()
    assert len(run.remove_leftovers()) == 3
    assert sorted(path.name for path in run.checkpoint_directory.iterdir()) == sorted(kept)
    assert not list((run.path / "best").iterdir()) and run.remove_leftovers() == []


SYSTEM = [OSError(code, os.strerror(code)) for code in (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EMFILE)]
MAPPED = RuntimeError("unable to mmap 9 bytes from file <a>: Cannot allocate memory (12)")


def failing(original, faults):
    """Return `original`, which raises the first of `faults` instead while the list has any."""

    def patched(*arguments, **options):
        if faults:
            raise faults.pop(0)
        return original(*arguments, **options)

    return patched


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [*((checksum, "_checksum", fault) for fault in (*SYSTEM, MemoryError())), (torch, "load", MAPPED)],
)
def test_a_transient_read_error_does_not_blame_the_file(run, monkeypatch, owner, name, fault):
    """Intact checkpoints must not be called damaged: those are renamed and later removed."""
    for step in (4, 8):
        write_step(run, step)
    checksum._fault.cache_clear()  # writing has compared the checksums in this process
    monkeypatch.setattr(torch_load, "WAITS", (0.0, 0.0))
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, failing(original, [fault] * 9))
    with pytest.raises(TransientError, match=r"node .*step=00000008.ckpt cannot be read now \("):
        read_content(run, {})
    monkeypatch.setattr(owner, name, failing(original, [fault] * 2))
    content = read_content(run, {})
    assert content.newest.step == 8 and not content.damaged


def test_the_content_of_a_run_is_that_of_its_newest_intact_checkpoint(run):
    assert read_content(run, {"a": 2}) == RunContent(None, {}, {}, {"a": 2})
    for step in (4, 8):
        trainer = {"global_step": step, "imported_from": "x"}
        content = {"configuration": {"a": step}, "data": {"rows": step}, "cursor": {"epoch": step // 3}}
        write_step(run, step, trainer=trainer, **content)
    older, newer = sorted(run.checkpoints())
    newer.write_bytes(newer.read_bytes()[:900])
    damaged = str(assert_user_error("damaged", read_checkpoint, newer))
    progress = Progress(older, 4, 1)
    assert read_content(run, {"a": 2}) == RunContent(progress, {newer: damaged}, {"a": 4}, {"a": 2}, "x", {"rows": 4})


def test_a_checkpoint_without_permission_is_a_user_error(path, monkeypatch):
    checksum._fault.cache_clear()
    monkeypatch.setattr(checksum, "_checksum", failing(None, [PermissionError(errno.EACCES, "Permission denied")]))
    error = assert_user_error(r"a.ckpt cannot be used \(Permission denied\)", read_checkpoint, path)
    assert not isinstance(error, TransientError | torch_load.UnreadableFile)


def test_a_disk_that_cannot_be_read_back_now_does_not_end_training(path, monkeypatch):
    monkeypatch.setattr(torch_load, "WAITS", ())
    monkeypatch.setattr(torch, "load", failing(None, [OSError(errno.EIO, "Input/output error")]))
    with pytest.raises(CheckpointNotWritten, match=r"could not be written \(Input/output error"):
        write_checkpoint(CONTENT, path)
    monkeypatch.undo()
    assert read_checkpoint(path)["cursor"] == {}


UNREADABLE = [
    ({"bad": lambda: 0}, "trainer.bad is a builtins.function"),
    ({"callbacks": {"Best": {"scores": [1.0, np.float64(0.5)]}}}, "trainer.callbacks.Best.scores.1 is a numpy.float64"),
    ({"callbacks": {"Best": {"file": Path("a.ckpt")}}}, "trainer.callbacks.Best.file is a pathlib."),
    ({"counts": {np.int64(3): 1}}, "the key trainer.counts.3 is a numpy.int64"),
    ({"table": np.zeros(2)}, "trainer.table is a numpy.ndarray"),
]


@pytest.mark.parametrize(("state", "text"), UNREADABLE)
def test_values_that_cannot_be_read_again_are_refused_and_the_old_file_is_kept(path, state, text):
    """torch writes most of them without an error and refuses them when it reads."""
    assert text in str(assert_user_error("a.ckpt", write_checkpoint, {**CONTENT, "trainer": state}, path))
    assert read_checkpoint(path)["trainer"] == {} and [file.name for file in path.parent.iterdir()] == ["a.ckpt"]


def test_content_that_lacks_a_key_is_refused(tmp_path):
    with pytest.raises(UserError, match="lacks network"):
        write_checkpoint({key: {} for key in KEYS if key != "network"}, tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_are_listed():
    model = AiM(TINY)
    weights = dict(model.state_dict())
    weights.pop("backbone.norm_f.weight")
    weights["extra"] = torch.zeros(1)
    weights["lm_head.weight"] = torch.zeros(3, 3)
    text = str(assert_user_error("file.ckpt", load_weights, model, weights, "file.ckpt"))
    assert "missing: backbone.norm_f.weight" in text and "surplus: extra" in text
    assert "lm_head.weight (3, 3) for (16, 32)" in text


def test_run_directory_names_and_newest(run):
    assert_user_error("or import weights", newest_checkpoint, run.path)
    steps = ("step=00000010.ckpt", "step=00000002.ckpt")
    touch(run, *steps, ".step=00000020.ckpt.1.tmp", "notes.txt", "best.ckpt")
    assert newest_checkpoint(run.path).name == steps[0] and tuple(p.name for p in run.checkpoints()) == steps
    for name in ("", "../up", "a b", "a/b", 201 * "a"):
        assert_user_error("use letters", RunDirectory, "exp", name)
