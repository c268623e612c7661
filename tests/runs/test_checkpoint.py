"""The checkpoint file and what can be wrong with it."""

import errno
import os
import pickle
import resource
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


def test_round_trip(tmp_path):
    write_checkpoint(CONTENT, tmp_path / "a.ckpt")
    assert torch.equal(read_checkpoint(tmp_path / "a.ckpt")["network"]["w"], CONTENT["network"]["w"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


class Evil:
    def __reduce__(self):
        return (print, ("this code must not run",))


def test_damage_and_foreign_files_are_one_line(tmp_path, capsys):
    path = tmp_path / "a.ckpt"
    write_checkpoint(CONTENT, path)
    whole = path.read_bytes()
    cases = {
        "damaged": whole[: len(whole) // 2],
        "damaged or not a checkpoint": b"",
        "not a checkpoint": b"hello",
        "not a checkpoint (": pickle.dumps(Evil()),
    }
    for word, content in cases.items():
        path.write_bytes(content)
        assert word in str(assert_user_error("a.ckpt", read_checkpoint, path))
    assert capsys.readouterr().out == ""
    torch.save({"state_dict": {}}, path)
    assert_user_error("not written by this project", read_checkpoint, path)
    torch.save({"format": FORMAT, "network": {}}, path)
    assert_user_error("lacks ema, optimizers", read_checkpoint, path)
    assert_user_error("does not exist", read_checkpoint, tmp_path / "none.ckpt")


OTHER_VERSIONS = [
    ({"format": "aim_lightning.checkpoint/2"}, "has format 'aim_lightning.checkpoint/2', this version reads"),
    ({"format": "other"}, "was not written by this project"),
    ({"cursor": None}, "lacks cursor; use the version that wrote it"),
]


@pytest.mark.parametrize(("change", "match"), OTHER_VERSIONS)
def test_an_intact_checkpoint_of_another_version_is_refused_and_not_called_damaged(tmp_path, change, match):
    run = RunDirectory("exp", "main", tmp_path)
    content = {**CONTENT, "trainer": {"global_step": 4}, "cursor": {"epoch": 0}}
    write_checkpoint(content, run.checkpoint_directory / "step=00000004.ckpt")
    newer = {key: value for key, value in {"format": FORMAT, **content, **change}.items() if value is not None}
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


def test_any_changed_bit_is_noticed(tmp_path):
    """torch itself reads such a file without a word, unless it is the archive's own structure."""
    path = tmp_path / "a.ckpt"
    write_checkpoint(CONTENT, path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    last = range(len(whole) - 60, len(whole))  # the end of the archive and the seal
    for position in [*rng.integers(0, len(whole), 60).tolist(), *range(40), *last]:
        data = bytearray(whole)
        data[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        assert_user_error("damaged", read_checkpoint, path)
    weight = whole.index(CONTENT["network"]["w"].numpy().tobytes()[:400])
    path.write_bytes(whole[:weight] + b"\1" + whole[weight + 1 :])
    assert not torch.equal(torch.load(path)["network"]["w"], CONTENT["network"]["w"])


def test_archives_without_a_seal_are_compared_member_by_member(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"format": FORMAT, **CONTENT}, path)
    assert torch.equal(read_checkpoint(path)["network"]["w"], CONTENT["network"]["w"])
    data = bytearray(path.read_bytes())
    data[data.index(CONTENT["network"]["w"].numpy().tobytes()[:400])] ^= 1
    path.write_bytes(data)
    assert_user_error("damaged", read_checkpoint, path)


def test_any_cut_is_noticed(tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint(CONTENT, path)
    whole = path.read_bytes()
    for size in (1, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert_user_error("damaged", read_checkpoint, path)


def test_what_does_not_read_back_is_not_put_in_place(tmp_path, monkeypatch):
    """A disk that takes bytes and gives others back."""
    path = tmp_path / "a.ckpt"
    write_checkpoint(CONTENT, path)
    before = path.read_bytes()

    def rot(temporary):
        data = bytearray(temporary.read_bytes())
        data[len(data) // 2] ^= 1
        temporary.write_bytes(data)

    monkeypatch.setattr(io, "drop_from_cache", rot)
    with pytest.raises(CheckpointNotWritten, match="read back, it was damaged: its checksum differs"):
        write_checkpoint({**CONTENT, "cursor": {"epoch": 1}}, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_named_with_what_is_free(tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint(CONTENT, path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limit[1]))
    try:
        with pytest.raises(CheckpointNotWritten, match=r"could not be written \(File too large, [\d,]+ MiB free\)"):
            write_checkpoint(CONTENT, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "network" in read_checkpoint(path) and len(list(tmp_path.iterdir())) == 1


def test_damaged_checkpoints_after_a_step_are_set_aside(tmp_path):
    run = RunDirectory("exp", "main", tmp_path)
    run.checkpoint_directory.mkdir(parents=True)
    for step in (4, 8, 12):
        (run.checkpoint_directory / f"step={step:08d}.ckpt").touch()
    with pytest.raises(TransientError, match=r"step=00000012\.ckpt has appeared since the start"):
        run.set_aside_newer(4, [run.checkpoint_directory / "step=00000008.ckpt"])
    assert len(run.checkpoints()) == 3
    names = run.set_aside_newer(8, [run.checkpoint_directory / "step=00000012.ckpt"])
    assert [path.name for path in names] == ["step=00000012.ckpt.damaged"]
    assert [path.name for path in run.checkpoints()] == ["step=00000008.ckpt", "step=00000004.ckpt"]


def test_leftovers_of_kills_are_removed_but_the_newest_damaged_one(tmp_path):
    run = RunDirectory("exp", "main", tmp_path)
    stay = ["step=00000004.ckpt", "step=00000016.ckpt.damaged", "notes.txt", ".hidden"]
    half = [".step=00000012.ckpt.77-abcd.tmp", "step=00000008.ckpt.damaged"]
    for name in [*stay, *half]:
        run.checkpoint_directory.mkdir(parents=True, exist_ok=True)
        (run.checkpoint_directory / name).touch()
    (run.path / "best").mkdir()
    (run.path / "best" / ".fd=1.0-step=00000008.ckpt.77-abcd.tmp").touch()
    assert len(run.remove_leftovers()) == 3
    assert sorted(path.name for path in run.checkpoint_directory.iterdir()) == sorted(stay)
    assert not list((run.path / "best").iterdir()) and run.remove_leftovers() == []


SYSTEM = [OSError(code, os.strerror(code)) for code in (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EMFILE)]
MAPPED = RuntimeError("unable to mmap 9 bytes from file <a>: Cannot allocate memory (12)")


def failing(original, faults):
    """`original`, which raises the first of `faults` instead, as long as there are any."""

    def patched(*arguments, **options):
        if faults:
            raise faults.pop(0)
        return original(*arguments, **options)

    return patched


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [*((checksum, "_checksum", fault) for fault in (*SYSTEM, MemoryError())), (torch, "load", MAPPED)],
)
def test_a_transient_read_error_does_not_blame_the_file(tmp_path, monkeypatch, owner, name, fault):
    """Intact checkpoints must not be called damaged: those are renamed and later removed."""
    run = RunDirectory("exp", "main", tmp_path)
    for step in (4, 8):
        write_checkpoint(
            {**CONTENT, "trainer": {"global_step": step}, "cursor": {"epoch": 0}},
            run.checkpoint_directory / f"step={step:08d}.ckpt",
        )
    checksum._fault.cache_clear()  # writing has compared the checksums in this process
    monkeypatch.setattr(torch_load, "WAITS", (0.0, 0.0))
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, failing(original, [fault] * 9))
    with pytest.raises(TransientError, match=r"node .*step=00000008.ckpt cannot be read now \("):
        read_content(run, {})
    monkeypatch.setattr(owner, name, failing(original, [fault] * 2))
    content = read_content(run, {})
    assert content.newest.step == 8 and not content.damaged


def test_the_content_of_a_run_is_that_of_its_newest_intact_checkpoint(tmp_path):
    run = RunDirectory("exp", "main", tmp_path)
    assert read_content(run, {"a": 2}) == RunContent(None, {}, {}, {"a": 2})
    for step in (4, 8):
        content = {"trainer": {"global_step": step, "imported_from": "x"}, "cursor": {"epoch": step // 3}}
        content |= {"configuration": {"a": step}, "data": {"rows": step}}
        write_checkpoint({**CONTENT, **content}, run.checkpoint_directory / f"step={step:08d}.ckpt")
    older, newer = sorted(run.checkpoints())
    newer.write_bytes(newer.read_bytes()[:900])
    damaged = str(assert_user_error("damaged", read_checkpoint, newer))
    progress = Progress(older, 4, 1)
    assert read_content(run, {"a": 2}) == RunContent(progress, {newer: damaged}, {"a": 4}, {"a": 2}, "x", {"rows": 4})


def test_a_checkpoint_without_permission_is_reported_as_the_user_s_mistake(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    write_checkpoint(CONTENT, path)
    checksum._fault.cache_clear()
    monkeypatch.setattr(checksum, "_checksum", failing(None, [PermissionError(errno.EACCES, "Permission denied")]))
    caught = assert_user_error(r"a.ckpt cannot be used \(Permission denied\)", read_checkpoint, path)
    assert not isinstance(caught, TransientError | torch_load.UnreadableFile)


def test_a_disk_that_cannot_be_read_back_for_now_leaves_training_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    write_checkpoint(CONTENT, path)
    monkeypatch.setattr(torch_load, "WAITS", ())
    monkeypatch.setattr(torch, "load", failing(None, [OSError(errno.EIO, "Input/output error")]))
    with pytest.raises(CheckpointNotWritten, match=r"could not be written \(Input/output error"):
        write_checkpoint(CONTENT, path)
    monkeypatch.undo()
    assert read_checkpoint(path)["cursor"] == {}


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint(CONTENT, path)
    with pytest.raises(UserError, match=r"trainer\.bad is a builtins\.function"):
        write_checkpoint({**CONTENT, "trainer": {"bad": lambda: 0}}, path)
    assert "network" in read_checkpoint(path) and len(list(tmp_path.iterdir())) == 1


UNREADABLE = [
    ({"callbacks": {"Best": {"scores": [1.0, np.float64(0.5)]}}}, "trainer.callbacks.Best.scores.1 is a numpy.float64"),
    ({"callbacks": {"Best": {"file": Path("a.ckpt")}}}, "trainer.callbacks.Best.file is a pathlib."),
    ({"counts": {np.int64(3): 1}}, "the key trainer.counts.3 is a numpy.int64"),
    ({"table": np.zeros(2)}, "trainer.table is a numpy.ndarray"),
]


@pytest.mark.parametrize(("state", "words"), UNREADABLE)
def test_what_could_not_be_read_again_is_refused_before_it_replaces_anything(tmp_path, state, words):
    """torch writes these without a word and refuses them when it reads."""
    path = tmp_path / "a.ckpt"
    write_checkpoint(CONTENT, path)
    assert words in str(assert_user_error("a.ckpt", write_checkpoint, {**CONTENT, "trainer": state}, path))
    assert read_checkpoint(path)["trainer"] == {} and [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_content_without_a_key_that_reading_asks_for_is_refused(tmp_path):
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


def test_run_directory_names_and_newest(tmp_path):
    run = RunDirectory("exp", "main", tmp_path)
    assert_user_error("holds no checkpoint; train it first", newest_checkpoint, run.path)
    run.checkpoint_directory.mkdir(parents=True)
    for name in ("step=00000002.ckpt", "step=00000010.ckpt", ".step=00000020.ckpt.1.tmp", "notes.txt", "best.ckpt"):
        (run.checkpoint_directory / name).touch()
    assert newest_checkpoint(run.path).name == "step=00000010.ckpt"
    assert [p.name for p in run.checkpoints()] == ["step=00000010.ckpt", "step=00000002.ckpt"]
    for bad in ("", "../up", "a b", "a/b"):
        assert_user_error("use letters", RunDirectory, "exp", bad, tmp_path)
