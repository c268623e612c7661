"""The checkpoint file and what can be wrong with it."""

import pickle

import pytest
import torch
from helpers import TINY

from aim_lightning.models import AiM
from aim_lightning.runs.checkpoint import KEYS, load_weights, read_checkpoint, write_checkpoint
from aim_lightning.runs.directory import RunDirectory, newest_checkpoint
from aim_lightning.utils.errors import UserError

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
        "damaged or no checkpoint": b"",
        "no checkpoint": b"hello",
        "no checkpoint (": pickle.dumps(Evil()),
    }
    for word, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_checkpoint(path)
        assert word in str(caught.value) and "\n" not in str(caught.value) and "a.ckpt" in str(caught.value)
    assert capsys.readouterr().out == ""
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="not written by this project"):
        read_checkpoint(path)
    torch.save({"format": "aim_lightning.checkpoint/1", "network": {}}, path)
    with pytest.raises(UserError, match="lacks ema, optimizers"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint(CONTENT, path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        write_checkpoint({**CONTENT, "trainer": {"bad": lambda: 0}}, path)
    assert "network" in read_checkpoint(path) and len(list(tmp_path.iterdir())) == 1


def test_weights_that_do_not_fit_are_listed():
    model = AiM(TINY)
    weights = dict(model.state_dict())
    weights.pop("backbone.norm_f.weight")
    weights["extra"] = torch.zeros(1)
    weights["lm_head.weight"] = torch.zeros(3, 3)
    with pytest.raises(UserError) as caught:
        load_weights(model, weights, "file.ckpt")
    text = str(caught.value)
    assert "missing: backbone.norm_f.weight" in text and "surplus: extra" in text
    assert "lm_head.weight (3, 3) for (16, 32)" in text and "\n" not in text


def test_run_directory_names_and_newest(tmp_path):
    run = RunDirectory("exp", "main", tmp_path)
    with pytest.raises(UserError, match="holds no checkpoint; train it first"):
        newest_checkpoint(run.path)
    run.checkpoint_folder.mkdir(parents=True)
    for name in ("step=00000002.ckpt", "step=00000010.ckpt", ".step=00000020.ckpt.1.tmp", "notes.txt", "best.ckpt"):
        (run.checkpoint_folder / name).touch()
    assert newest_checkpoint(run.path).name == "step=00000010.ckpt"
    assert [p.name for p in run.checkpoints()] == ["step=00000010.ckpt", "step=00000002.ckpt"]
    for bad in ("", "../up", "a b", "a/b"):
        with pytest.raises(UserError, match="use letters"):
            RunDirectory("exp", bad, tmp_path)
