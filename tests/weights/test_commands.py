"""`aim-lightning weights import|export|inspect`, in process where the process itself is not in question."""

import json
import shutil

import pytest
import torch
from helpers import TINY, assert_contains, write_tokens
from integration.tiny import write_experiment
from weights.makers import SMALL_VQ, aim, published, same, vq, write_run

from aim_lightning import load
from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.cli.main import main
from aim_lightning.models import VQModel
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.runs.history import read_content
from aim_lightning.runs.resume_policy import decide
from aim_lightning.weights import export_aim, export_vq, import_aim, import_vq


@pytest.fixture
def directory(tmp_path):
    """Write a published directory."""
    return export_aim(aim(), tmp_path / "published", tokenizer=vq())


@pytest.fixture
def experiment(tmp_path):
    return write_experiment(tmp_path)


def test_inspect_prints_what_there_is(directory, tmp_path, succeed):
    text = succeed("weights", "inspect", directory)
    sizes = ["24,088", "d_model", "VQ tokenizer", "16,603", "all there", "float32"]
    assert_contains(text, ["Hugging Face directory", "sha256", *sizes])
    run = write_run(tmp_path / "exp" / "main", aim(), dict(aim(seed=2).state_dict()))
    assert "averaged (EMA) weights" in succeed("weights", "inspect", run)
    assert "raw weights" in succeed("weights", "inspect", run, "--raw", "true")


def test_inspect_reports_faults_with_exit_code_one(tmp_path, capsys):
    weights = published(aim())
    del weights["mamba.backbone.norm_f.weight"]
    weights["mamba.more"] = torch.zeros(1)
    torch.save(weights, tmp_path / "odd.pt")
    assert main(["weights", "inspect", str(tmp_path / "odd.pt")]) == 1
    text = capsys.readouterr().out
    assert "missing: backbone.norm_f.weight" in text and "surplus: more" in text
    del weights["mamba.backbone.cls_embed.embedding_table.weight"]
    torch.save(weights, tmp_path / "odd.pt")
    assert main(["weights", "inspect", str(tmp_path / "odd.pt")]) == 1
    assert "missing: backbone.cls_embed" in capsys.readouterr().out


def test_inspect_counts_the_parameters_of_a_tokenizer_whose_groups_it_cannot_infer(tmp_path, capsys):
    torch.save(vq().state_dict(), tmp_path / "vq.pt")
    assert main(["weights", "inspect", str(tmp_path / "vq.pt")]) == 1
    text = capsys.readouterr().out
    assert "16,603" in text and "norm_groups" in text


def test_inspect_names_what_it_does_not_read_and_every_fault(tmp_path, capsys, succeed):
    content = {"model": published(aim()), "optimizer": {"state": {}}, "steps": 3, "extra": torch.zeros(2)}
    torch.save(content, tmp_path / "a.pt")
    assert "not read: extra, optimizer, steps" in succeed("weights", "inspect", tmp_path / "a.pt")
    names = [f"mamba.more{i:02d}" for i in range(30)]
    torch.save(content["model"] | {name: torch.zeros(1) for name in names}, tmp_path / "b.pt")
    assert main(["weights", "inspect", str(tmp_path / "b.pt")]) == 1
    text = capsys.readouterr().out
    assert all(name.removeprefix("mamba.") in text for name in names) and "not read" not in text


def test_import_makes_a_run(directory, experiment, tmp_path, succeed, fail):
    text = succeed("weights", "import", directory, "--config", experiment, "--run", "published")
    assert f'next: make sample EXP=tiny RUN=published ARGS="--tokenizer {directory}"' in text
    run = tmp_path / "runs" / "tiny" / "published"
    assert same(import_aim(run), aim()) and (run / "config.yaml").is_file()
    content = read_checkpoint(run / "checkpoints" / "step=00000000.ckpt")
    assert content["tokenizer_hash"] == vq().weights_hash and content["ema"] is None
    assert same(load(run, tokenizer=import_vq(directory)).aim, aim())
    again = fail("weights", "import", directory, "--config", experiment, "--run", "published")
    assert "already holds a run; give another --run" in again


def test_an_imported_run_is_not_continued(directory, experiment, tmp_path, succeed):
    succeed("weights", "import", directory, "--config", experiment)
    directory = RunDirectory("tiny", "main", tmp_path / "runs")
    content = read_content(directory, {})
    decision = decide(content, allow_changes=True)
    assert decision.action == "refuse" and "weights imported from" in decision.notes[-1]


OTHER_NETWORKS = [
    (["--model.network.d_model", "64"], "d_model is 32 there and 64 here"),
    (["--model.network.adaln", "layer"], "adaln is group there and layer here"),
    (["--model.network.num_tokens", "9"], "num_tokens is 4 there and 9 here"),
]


@pytest.mark.parametrize(("change", "words"), OTHER_NETWORKS)
def test_import_into_another_network_is_refused(directory, experiment, tmp_path, change, words, fail):
    text = fail("weights", "import", directory, "--config", experiment, *change)
    assert "is another network than model.network" in text and words in text
    assert not (tmp_path / "runs").exists()


def test_import_of_a_tokenizer_with_other_groups_is_refused(tmp_path, fail):
    small = ("--model.network", "{base_channels: 8, channel_multipliers: [1, 1], num_res_blocks: 1, z_channels: 8}")
    options = (*small, "--model.network.codebook_size", 16, "--model.network.codebook_dim", 8)
    options += ("--model.network.norm_groups", 2, "--runs_root", tmp_path / "runs")
    directory = export_vq(vq(), tmp_path / "vq")
    text = fail("weights", "import", directory, "--config", "experiments/demo_tokenizer.yaml", *options)
    assert "is another network than model.network: norm_groups is 4 there and 2 here" in text


def test_dropouts_are_the_configurations(directory, experiment, tmp_path, succeed):
    succeed("weights", "import", directory, "--config", experiment)
    assert import_aim(tmp_path / "runs" / "tiny" / "main").config.token_dropout == 0.2


def test_import_of_a_tokenizer(tmp_path, succeed):
    torch.save({"model": vq(seed=1).state_dict(), "ema": vq(seed=2).state_dict()}, tmp_path / "vq.pt")
    sizes = {
        "codebook_size": 16, "codebook_dim": 8, "base_channels": 8, "channel_multipliers": [1, 1],
        "num_res_blocks": 1, "z_channels": 8, "norm_groups": 4, "usage_window": 64,
    }  # fmt: skip
    options = [part for key, value in sizes.items() for part in (f"--model.network.{key}", str(value))]
    config = ("--config", "experiments/demo_tokenizer.yaml", "--runs_root", tmp_path / "runs", "--images.image_size", 4)
    text = succeed("weights", "import", tmp_path / "vq.pt", *config, *options, "--raw", "true")
    assert "next: make tokenize EXP=demo_tokenizer RUN=main" in text
    assert same(import_vq(tmp_path / "runs" / "demo_tokenizer" / "main"), vq(seed=1))


def test_export_of_runs(tmp_path, monkeypatch, succeed, fail):
    monkeypatch.chdir(tmp_path)
    tokenizer = write_run(tmp_path / "runs" / "vq" / "main", vq())
    run = write_run(
        tmp_path / "runs" / "aim" / "main", aim(seed=3), dict(aim(seed=4).state_dict()), class_names=["a", "b", "c"],
        tokenizer_hash=vq().weights_hash,
    )  # fmt: skip
    assert "names no tokenizer" in fail("weights", "export", run, "--out", "out")
    text = succeed("weights", "export", run, "--out", "out", "--tokenizer", tokenizer)
    assert "out/model.safetensors" in text
    assert same(import_aim("out"), aim(seed=4)) and same(import_vq("out"), vq())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["class_names"] == ["a", "b", "c"]
    succeed("weights", "export", run, "--out", "raw", "--tokenizer", tokenizer, "--raw", "true")
    assert same(import_aim("raw"), aim(seed=3))
    succeed("weights", "export", tokenizer, "--out", "vq")
    assert same(import_vq("vq"), vq())
    other = export_vq(vq(seed=9), tmp_path / "other")
    text = fail("weights", "export", run, "--out", "bad", "--tokenizer", other)
    assert "codes of another tokenizer" in text and not (tmp_path / "bad").exists()
    assert "leave --tokenizer out" in fail("weights", "export", "vq", "--out", "x", "--tokenizer", "vq")


MISTAKES = [
    (["weights", "fly"], "use one of import, export, push, inspect"),
    (["weights", "inspect"], "SOURCE"),
    (["weights", "inspect", "nothing.pt"], "nothing.pt does not exist"),
    (["weights", "import", "nothing.pt"], "--config"),
    (["weights", "export", "nothing.pt"], "--out"),
    (["weights", "inspect", "a", "--what"], "--what"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_mistakes_are_one_line(arguments, words, fail):
    assert words in fail(*arguments)


@pytest.mark.parametrize("arguments", [["weights"], ["weights", "--help"], ["weights", "import", "--help"]])
def test_help(arguments, succeed):
    text = succeed(*arguments)
    assert (text.startswith("usage: aim-lightning weights") and "SOURCE" in text) or "ACTION" in text


@pytest.mark.slow
def test_published_weights_to_samples_and_scores(aim_cli, tmp_path):
    """Real processes, command by command as docs/weights.md has them."""
    directory, experiment = export_aim(aim(), tmp_path / "published", tokenizer=vq()), write_experiment(tmp_path)
    for split, seed in (("train", 0), ("val", 1)):
        shutil.rmtree(tmp_path / "tokens" / split)
        write_tokens(tmp_path / "tokens" / split, [20], config=TINY, seed=seed, tokenizer_hash=vq().weights_hash)
    common = ("--config", experiment, "--tokenizer", directory, "--callbacks.ema", "null")
    run = tmp_path / "runs" / "tiny" / "main"
    for arguments in (
        ("weights", "inspect", directory),
        ("weights", "import", directory, *common),
        ("sample", *common, "--num", "2", "--sampling.position_offset", "1"),
        ("validate", *common),
        ("weights", "export", run, "--out", tmp_path / "again"),
    ):
        result = aim_cli(*arguments)
        assert result.returncode == 0, (arguments, result.stdout + result.stderr)
    assert len(list((run / "samples").glob("*.png"))) == 7
    results = json.loads((run / "results.json").read_text())
    assert results["protocol"]["validate"]["weights"] == "raw" and results["metrics"]["val/loss"] > 0
    assert same(import_aim(tmp_path / "again"), import_aim(directory))
    assert isinstance(import_vq(tmp_path / "again"), VQModel) and import_vq(tmp_path / "again").config == SMALL_VQ
