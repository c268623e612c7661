"""Export then import gives every bit back, under exactly the published names."""

import errno
import json
import os
from dataclasses import replace
from unittest import mock

import pytest
import torch
from helpers import TINY, assert_user_error, fixture, published_aim, published_vq8, relative
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from weights.makers import SMALL_VQ, aim, same, vq

from aim_lightning import AiMPipeline
from aim_lightning.models import VQConfig
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import sha256_file
from aim_lightning.weights import export_aim, export_vq, import_aim, import_vq
from aim_lightning.weights.hf_config import to_published

FORMS = {
    "none": replace(TINY, adaln="none", num_groups=4),
    "layer": replace(TINY, adaln="layer", num_groups=4),
    "single": replace(TINY, num_groups=1),
    "group": TINY,
    "mlp": replace(TINY, d_intermediate=24, adaln="layer", num_groups=4),
    "mlp group": replace(TINY, d_intermediate=24),
    "no positions": replace(TINY, position_embedding=False),
    "other mixer": replace(TINY, d_conv=3, expand=4, headdim=32, d_state=5, chunk_size=64),
    "dropouts": replace(TINY, token_dropout=0.1, mixer_dropout=0.2, mlp_dropout=0.3),
}


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
def test_every_form_of_aim(config, tmp_path):
    model, tokenizer = aim(config), vq()
    directory = export_aim(model, tmp_path / "out", tokenizer=tokenizer)
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors"]
    assert len({path.stat().st_mode for path in directory.iterdir()}) == 1  # equal permissions
    back = import_aim(directory)
    assert back.config == config and same(back, model) and not back.training
    assert back.lm_head.weight is back.backbone.embeddings.word_embeddings.weight
    assert same(import_vq(directory), tokenizer) and import_vq(directory).config == SMALL_VQ
    again = export_aim(back, tmp_path / "again", tokenizer=tokenizer)
    assert sha256_file(again / "model.safetensors") == sha256_file(directory / "model.safetensors")


@pytest.fixture(scope="module")
def vq8():
    return published_vq8()


@pytest.mark.parametrize("name", ["tiny_group", "tiny_adaln"])
def test_exactly_the_published_names_shapes_and_fields(name, tmp_path, vq8):
    facts, data = fixture(name)
    directory = export_aim(published_aim(name), tmp_path / "out", tokenizer=vq8)
    weights = load_file(directory / "model.safetensors")
    expected = {f"mamba.{key}": shape for key, shape in facts["state_dict"].items() if key != "lm_head.weight"}
    expected |= {f"vqvae.{key}": shape for key, shape in fixture("vq8")[0]["state_dict"].items()}
    assert {key: list(value.shape) for key, value in weights.items()} == expected
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert file.metadata()["mamba.lm_head.weight"] == "mamba.backbone.embeddings.word_embeddings.weight"
    config = json.loads((directory / "config.json").read_text())
    assert {key: config[key] for key in facts["config"]} == facts["config"]
    logits = import_aim(directory)(data["tokens"][:, :-1], data["labels"][:, 0])
    assert relative(logits[:, data["logit_positions"]], data["logits"]) <= 1e-5


def test_a_published_network_gets_the_published_fields_alone():
    published = {
        "adaln_group", "attn_cfg", "attn_layer_idx", "d_intermediate", "d_model", "fused_add_norm", "mixer_drop",
        "mlp_drop", "n_layer", "num_classes", "num_groups", "num_tokens", "pad_vocab_size_multiple",
        "residual_in_fp32", "rms_norm", "ssm_cfg", "tie_embeddings", "token_drop", "vocab_size",
    }  # fmt: skip
    numbers = [str(i) for i in range(TINY.num_classes)]
    config = to_published(replace(TINY, d_state=128, headdim=64), VQConfig(), numbers)
    assert set(config) == published and config["ssm_cfg"] == {"layer": "Mamba2"}


def test_tokenizer_alone_has_llamagens_names(tmp_path, vq8):
    directory = export_vq(vq8, tmp_path / "vq8")
    weights = load_file(directory / "model.safetensors")
    assert {key: list(value.shape) for key, value in weights.items()} == fixture("vq8")[0]["state_dict"]
    torch.save({"model": vq8.state_dict()}, tmp_path / "vq_ds8_c2i.pt")
    assert same(import_vq(tmp_path / "vq_ds8_c2i.pt"), vq8)
    small = vq()
    back = import_vq(export_vq(small, tmp_path / "small"))
    assert same(back, small) and back.config == small.config and back.weights_hash == small.weights_hash


def test_types_are_kept_in_the_file_and_compiled_names_are_plain(tmp_path):
    model = aim().to(torch.bfloat16)
    compiled = torch.compile(model, backend="eager")
    compiled.config = model.config
    weights = load_file(export_aim(compiled, tmp_path / "out") / "model.safetensors")
    assert weights["mamba.backbone.norm_f.weight"].dtype == torch.bfloat16
    back = import_aim(tmp_path / "out")
    assert back.backbone.norm_f.weight.dtype == torch.float32
    assert torch.equal(back.backbone.norm_f.weight, model.backbone.norm_f.weight.float())


def test_pipeline_saves_and_loads_with_class_names(tmp_path):
    pipeline = AiMPipeline(aim(), vq(), ["cat", "dog", "owl"])
    directory = pipeline.save_pretrained(tmp_path / "animals")
    back = AiMPipeline.from_pretrained(directory)
    assert back.class_names == ["cat", "dog", "owl"] and same(back.aim, pipeline.aim)
    assert not any(parameter.requires_grad for parameter in back.tokenizer.parameters())
    assert torch.equal(back.generate([0, 2], seed=3), pipeline.generate([0, 2], seed=3))


def test_a_directory_is_complete_or_absent(tmp_path, monkeypatch):
    out = tmp_path / "out"
    export_aim(aim(seed=1), out, tokenizer=vq())
    export_aim(aim(seed=2), out, tokenizer=vq())  # an earlier export is replaced
    assert same(import_aim(out), aim(seed=2))
    (tmp_path / "empty").mkdir()
    export_aim(aim(), tmp_path / "empty")
    (out / "notes.txt").write_text("mine")
    assert_user_error("already holds notes", export_aim, aim(seed=3), out)
    assert same(import_aim(out), aim(seed=2))
    assert_user_error("is a file", export_aim, aim(), out / "notes.txt")

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for error in (full, SafetensorError("Error while serializing: I/O error: No space left on device")):
        monkeypatch.setattr("aim_lightning.weights.save.save_file", mock.Mock(side_effect=error))
        assert_user_error(r"new could not be written .*No space left on device", export_aim, aim(), tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "out"]


@pytest.mark.parametrize("directory", ["/proc/x/y", "/proc/y", "/dev/null/x"])
def test_a_directory_that_cannot_be_made_is_one_line(directory):
    for export, network in ((export_aim, aim()), (export_vq, vq())):
        caught = assert_user_error("could not be written", export, network, directory)
        assert str(caught).startswith(f"{directory} could not be written (")


def test_another_kind_of_tokenizer_has_no_published_layout(tmp_path):
    with pytest.raises(UserError, match="needs a VQModel as tokenizer, not a Linear"):
        export_aim(aim(), tmp_path / "out", tokenizer=torch.nn.Linear(1, 1))
    assert not list(tmp_path.iterdir())
