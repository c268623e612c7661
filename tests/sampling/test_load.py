"""Pipelines from a run or from published weights, with the right tokenizer."""

import shutil
from pathlib import Path

import pytest
from helpers import assert_user_error
from weights.makers import aim, run_content, same, vq, write_run

from aim_lightning import AiMPipeline, load
from aim_lightning.pipeline import load_tokenizer
from aim_lightning.pipeline.from_run import _tokenizer_source
from aim_lightning.utils.errors import UserError
from aim_lightning.weights import export_aim


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Write an AiM's run whose configuration names its tokenizer's run, relative to the current directory."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "vq" / "main", vq())
    configuration = {**run_content(aim())["configuration"], "tokenizer": "runs/vq/main"}
    return write_run(tmp_path / "runs" / "aim" / "main", aim(), configuration=configuration)


def test_the_tokenizer_loads_from_any_directory_and_next_to_a_moved_run(run, tmp_path, monkeypatch):
    assert same(load(run).tokenizer, vq())
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    monkeypatch.chdir("/")
    run = tmp_path / "moved" / "aim" / "main"
    assert same(load(run).tokenizer, vq())
    (run / "best").mkdir()
    shutil.copy(run / "checkpoints" / "step=00000001.ckpt", run / "best" / "best.ckpt")
    assert same(load(run / "best" / "best.ckpt").tokenizer, vq())


@pytest.mark.parametrize("name", ["a.ckpt", "b/c/d/e/f/a.ckpt", "checkpoints/a.ckpt"])
def test_a_checkpoint_without_its_run_names_the_missing_tokenizer(run, tmp_path, monkeypatch, name):
    (tmp_path / "elsewhere" / name).parent.mkdir(parents=True)
    path = shutil.copy(run / "checkpoints" / "step=00000001.ckpt", tmp_path / "elsewhere" / name)
    monkeypatch.chdir("/")
    error = f"{path} names the tokenizer runs/vq/main, which is not here; pass tokenizer= (or --tokenizer)"
    assert str(assert_user_error("names the tokenizer", load, path)) == error
    assert same(load(path, tokenizer=load_tokenizer(tmp_path / "runs" / "vq" / "main")).aim, aim())


def test_a_checkpoint_directly_below_the_root_of_the_disk():
    configuration = {"tokenizer": "runs/nothing/here", "runs_root": "runs"}
    for path in (Path("/a.ckpt"), Path("/checkpoints/a.ckpt")):
        with pytest.raises(UserError, match=r"a.ckpt names the tokenizer runs/nothing/here, which is not here"):
            _tokenizer_source(configuration, path)


def test_a_device_is_taken_or_refused_in_one_line(run):
    assert load(run, device="cpu").aim.lm_head.weight.device.type == "cpu"
    assert_user_error(r"^device is 'gpu' \(Expected one of cpu.*\); use cpu, cuda or cuda:N$", load, run, device="gpu")


@pytest.mark.parametrize(("dropout", "untrained"), [(0, "null class"), (1.0, "classes")])
def test_guidance_needs_a_trained_null_class(tmp_path, dropout, untrained):
    content = run_content(aim())["configuration"]
    model = {**content["model"], "init_args": {**content["model"]["init_args"], "label_dropout": dropout}}
    run = write_run(tmp_path / "run", aim(), configuration={**content, "model": model})
    pipeline = load(run, tokenizer=vq())
    pipeline.generate([0])
    message = f"sampling.cfg_scale is 2.0, but the network was trained with label_dropout {dropout:g}: its {untrained}"
    allowing = load(run, tokenizer=vq(), allow_untrained_guidance=True)
    exported = allowing.save_pretrained(tmp_path / "exported")  # the export records the dropout too
    for refusing in (pipeline, AiMPipeline.from_pretrained(exported)):
        assert_user_error(message, refusing.generate, [0], cfg_scale=2)
    for guided in (allowing, AiMPipeline.from_pretrained(exported, allow_untrained_guidance=True)):
        assert len(guided.generate([0], cfg_scale=2)) == 1


def test_from_pretrained_refuses_runs(run):
    for source in (run, run / "checkpoints" / "step=00000001.ckpt"):
        with pytest.raises(UserError, match=r"is a run or a checkpoint of this project; use aim_lightning.load"):
            AiMPipeline.from_pretrained(source)


def test_from_pretrained_takes_a_tokenizer(tmp_path):
    alone = export_aim(aim(), tmp_path / "alone")
    assert_user_error(r"alone holds no tokenizer; pass tokenizer=", AiMPipeline.from_pretrained, alone)
    pipeline = AiMPipeline.from_pretrained(alone, tokenizer=vq())
    assert same(pipeline.aim, aim()) and same(pipeline.tokenizer, vq())
    both = export_aim(aim(), tmp_path / "both", tokenizer=vq())
    assert same(AiMPipeline.from_pretrained(both, tokenizer=vq()).tokenizer, vq())
    with pytest.raises(UserError, match="both was trained on the codes of another tokenizer"):
        AiMPipeline.from_pretrained(both, tokenizer=vq(seed=9))
