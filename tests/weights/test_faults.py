"""Faults of weights: one line each, strict loading, and no code is run."""

import json
import pickle
from dataclasses import replace

import pytest
import torch
from helpers import TINY, assert_user_error
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from weights.makers import aim, published, run_content, vq, write_run

from aim_lightning import AiMPipeline
from aim_lightning.checkpoint.format import FORMAT
from aim_lightning.checkpoint.io import write_checkpoint
from aim_lightning.pipeline import load_tokenizer
from aim_lightning.weights import export_aim, export_vq, import_aim, import_vq
from aim_lightning.weights.inspect import inspect


def mistake(call, *args, **options) -> str:
    text = str(assert_user_error(".", call, *args, **options))
    assert "UserError" not in text
    return text


def test_names_that_do_not_fit_are_listed_together():
    weights = published(aim())
    del weights["mamba.backbone.layers.1.mixer.A_log"], weights["mamba.backbone.norm_f.weight"]
    weights["mamba.backbone.layers.0.mixer.dt_bias"] = torch.zeros(7)
    weights["mamba.extra"], weights["optimizer"] = torch.zeros(1), torch.zeros(1)
    weights["epoch"] = 3
    text = mistake(import_aim, weights)
    assert "missing: backbone.layers.1.mixer.A_log, backbone.norm_f.weight" in text
    assert "surplus: epoch, extra, optimizer" in text and "layers.0.mixer.dt_bias (7,) for (4,)" in text


@pytest.mark.parametrize("adaln", ["layer", "none", "group"])
def test_one_misshapen_layer_does_not_mislead(adaln):
    weights = published(aim(replace(TINY, n_layer=3, adaln=adaln)))
    weights["mamba.backbone.layers.0.mixer.conv1d.weight"] = torch.zeros(50, 1, 4)
    text = mistake(import_aim, weights)
    assert text.endswith("other shape: backbone.layers.0.mixer.conv1d.weight (50, 1, 4) for (80, 1, 4)")


def test_tokenizer_names_are_listed_too():
    weights = {f"vqvae.{name}": value for name, value in vq().state_dict().items()}
    del weights["vqvae.decoder.conv_out.bias"]
    weights["vqvae.decoder.more"] = torch.zeros(1)
    text = mistake(import_vq, weights, image_size=4, norm_groups=4)
    assert "missing: decoder.conv_out.bias" in text and "surplus: decoder.more" in text


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool, torch.complex64])
def test_weights_that_are_not_floating_point(dtype):
    weights = published(aim(), vq())
    weights["mamba.backbone.norm_f.weight"] = torch.ones(32, dtype=dtype)
    assert f"other type: backbone.norm_f.weight {dtype} for torch.float32" in mistake(import_aim, weights)
    weights["vqvae.quant_conv.bias"] = torch.ones(8, dtype=dtype)
    assert f"other type: quant_conv.bias {dtype}" in mistake(import_vq, weights, image_size=4, norm_groups=4)


def test_the_record_of_used_codes_may_be_integers():
    weights = {**vq().state_dict(), "quantize.codebook_used": torch.arange(64)}
    assert torch.equal(import_vq(weights, image_size=4, norm_groups=4).quantize.codebook_used, torch.arange(64.0))


def test_weights_next_to_the_group_that_would_be_read():
    for name in ("mamba.backbone.norm_f.weight", "lm_head.weight", "module.vqvae.quant_conv.bias"):
        content = {"model": published(aim()), name: torch.zeros(1), "optimizer": {}}
        text = mistake(import_aim, content)
        assert f"has weights under model and next to it; remove one of them: {name}" in text


BACKBONE = "mamba.backbone"
WRONG_WEIGHTS = [
    ({f"{BACKBONE}.cls_embed.embedding_table.weight": None}, "missing: backbone.cls_embed.embedding_table.weight"),
    ({f"{BACKBONE}.adaln_group.1.weight": None}, "missing: backbone.adaln_group.1.weight"),
    ({f"{BACKBONE}.layers.{i}.mixer.out_proj.weight": torch.zeros(32, 65) for i in range(2)}, "would be 65 / 32"),
    ({f"{BACKBONE}.cls_embed.embedding_table.weight": torch.zeros(4)}, "has shape (4,)"),
    ({"mamba.lm_head.weight": aim().lm_head.weight + 1e-3}, "lm_head.weight differs from backbone.embeddings"),
    ({"backbone.norm_f.weight": torch.zeros(32)}, "backbone.norm_f.weight twice"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG_WEIGHTS)
def test_weights_that_no_network_has(changes, words):
    weights = published(aim()) | changes
    assert words in mistake(import_aim, {name: value for name, value in weights.items() if value is not None})


@pytest.mark.parametrize("content", [{}, {"a": torch.zeros(1)}, {"model": {"a": 1}}, {1: torch.zeros(1)}, 5, [1]])
def test_content_that_is_no_weights(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    text = mistake(import_aim, tmp_path / "a.pt")
    assert "a.pt" in text and "holds" in text


def test_the_other_network_alone(tmp_path):
    assert "holds no AiM, only a tokenizer" in mistake(import_aim, export_vq(vq(), tmp_path / "vq"))
    assert "holds no tokenizer, only AiM" in mistake(import_vq, export_aim(aim(), tmp_path / "aim"))
    assert "holds no tokenizer" in mistake(AiMPipeline.from_pretrained, tmp_path / "aim")
    assert "expected aim_lightning.modules.aim.AiMModule" in mistake(import_aim, write_run(tmp_path / "r", vq()))


def test_arguments_that_contradict_the_source(tmp_path):
    """A wrong number of groups fits all weights and gives other images."""
    directory, run = export_aim(aim(), tmp_path / "out", tokenizer=vq()), write_run(tmp_path / "vq", vq())
    for source in (directory, run):
        text = mistake(import_vq, source, norm_groups=2)
        assert "has norm_groups 4, the argument says 2; leave norm_groups out" in text
        assert import_vq(source, norm_groups=4, image_size=8).grid == (4, 4)
    for source in (directory, write_run(tmp_path / "aim", aim()), published(aim())):
        assert "has num_tokens 4, the argument says 9" in mistake(import_aim, source, num_tokens=9)


class Evil:
    def __reduce__(self):
        return (print, ("this code must not run",))


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin", "ckpt"])
def test_truncated_and_foreign_files(tmp_path, capsys, suffix):
    path = tmp_path / f"a.{suffix}"
    weights = {name: value.clone() for name, value in published(aim(), vq()).items()}
    save_file(weights, path) if suffix == "safetensors" else torch.save(weights, path)
    complete = path.read_bytes()
    for content in (complete[: len(complete) // 2], complete[:-1], complete[:9], b"", b"hello", pickle.dumps(Evil())):
        path.write_bytes(content)
        text = mistake(import_aim, path)
        assert str(path) in text and "damaged or no" in text and ". " not in text.replace(str(path), "")
    if suffix != "safetensors":
        torch.save({"model": Evil()}, path)
        text = mistake(import_aim, path)
        assert "something else than tensors" in text and "weights_only" not in text
    assert capsys.readouterr().out == ""


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200), suffix=st.sampled_from(["pt", "safetensors"]))
def test_any_bytes_are_one_line(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    path.write_bytes(content)
    mistake(import_aim, path)


def flip_a_weight(path):
    """Flip one bit of a weight's exponent, which torch itself does not check."""
    content, number = bytearray(path.read_bytes()), torch.tensor([0.123456789])
    position = content.index(number.numpy().tobytes())
    content[position + 3] ^= 0x40
    path.write_bytes(content)


@pytest.mark.parametrize("form", ["file", "run", "directory"])
def test_one_flipped_bit(tmp_path, form):
    model, tokenizer = aim(), vq()
    with torch.no_grad():
        model.backbone.norm_f.weight[5] = tokenizer.quant_conv.bias[1] = 0.123456789
    if form == "run":
        path = write_run(tmp_path / "run", model) / "checkpoints" / "step=00000001.ckpt"
        source, text = tmp_path / "run", "its checksum differs"
    else:
        source = path = tmp_path / "weights.pt"
        if form == "directory":
            source = export_aim(model, tmp_path / "directory", tokenizer=tokenizer)
            path = source / "pytorch_model.bin"
            (source / "model.safetensors").unlink()
        torch.save({"model": published(model, tokenizer)}, path)
        text = "the checksum of"
    import_aim(source)  # intact
    flip_a_weight(path)
    for read in (import_aim, load_tokenizer, inspect):
        message = mistake(read, source)
        assert f"weights file {path} is damaged or not a weights file" in message and text in message


def test_archives_without_checksums_can_be_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(published(aim()), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert import_aim(tmp_path / "a.pt").config == TINY


def test_a_checkpoint_without_a_key(tmp_path):
    content = run_content(aim())
    del content["cursor"]
    torch.save({"format": FORMAT, **content}, tmp_path / "a.ckpt")
    assert "lacks cursor" in mistake(import_aim, tmp_path / "a.ckpt")


def test_a_checkpoint_whose_configuration_no_network_has(tmp_path):
    for change, words in (({"depth": 3}, "unknown options of AiMConfig: depth"), ({"d_conv": 0}, "d_conv is 0")):
        content = run_content(aim())
        content["configuration"]["model"]["init_args"]["network"] |= change
        write_checkpoint(content, tmp_path / "a.ckpt")
        text = mistake(import_aim, tmp_path / "a.ckpt")
        assert "a.ckpt" in text and words in text


def test_paths_that_lead_nowhere(tmp_path):
    assert "nothing.pt does not exist" in mistake(import_aim, tmp_path / "nothing.pt")
    assert "neither a run directory" in mistake(import_aim, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "holds none of model.safetensors" in mistake(import_aim, tmp_path)


def export_weights():
    return {name: value.clone() for name, value in published(aim(), vq(), head=False).items()}


WRONG_CONFIGS = [
    ({"d_modle": 32}, "unknown fields: d_modle"),
    ({"ssm_cfg": {"layer": "Mamba2", "speed": 1}}, "unknown fields: ssm_cfg.speed"),
    ({"vqvae": {"size": 1}}, "unknown fields: vqvae.size"),
    ({"ssm_cfg": {"layer": "Mamba1"}}, "ssm_cfg.layer is 'Mamba1'"),
    ({"vqvae": {"channel_multipliers": 1}}, "channel_multipliers 1 where the weights have (1, 1)"),
    ({"vqvae": {"image_size": "big"}}, "image_size is 'big'; it must be a whole number"),
    ({"ssm_cfg": 3}, "must be mappings"),
    ({"tie_embeddings": False}, "tie_embeddings is False; AiM has True"),
    ({"attn_layer_idx": [1]}, "attn_layer_idx is [1]"),
    ({"d_model": 64}, "config.json has d_model 64 where the weights have 32"),
    ({"adaln_group": False}, "adaln 'layer' where the weights have 'group'"),
    ({"num_groups": 3}, "num_groups 3 where the weights have 2"),
    ({"token_drop": "much"}, "token_dropout is 'much'; it must be from 0"),
    ({"token_drop": 2.0}, "out: AiMConfig.token_dropout is 2.0"),
    ({"ssm_cfg": {"layer": "Mamba2", "chunk_size": 0}}, "out: AiMConfig.chunk_size is 0"),
    ({"ssm_cfg": {"layer": "Mamba2", "chunk_size": 64.5}}, "out: AiMConfig.chunk_size is 64.5"),
    ({"ssm_cfg": {"layer": "Mamba2", "headdim": -16}}, "config.json has headdim -16"),
    ({"vqvae": {"image_size": 4, "norm_groups": 0}}, "out: VQConfig.norm_groups is 0"),
    ({"vqvae": {"image_size": 4, "norm_groups": 4, "dropout": 1.0}}, "out: VQConfig.dropout is 1.0"),
    ({"class_names": ["a"]}, "class_names"),
    ({"class_names": "abc"}, "class_names"),
]


@pytest.mark.parametrize(("change", "words"), WRONG_CONFIGS)
def test_config_json_must_be_known_and_true(tmp_path, change, words):
    directory = export_aim(aim(), tmp_path / "out", tokenizer=vq())
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **change}))
    assert words in mistake(AiMPipeline.from_pretrained, directory)
    (directory / "config.json").write_text("[1]")
    assert "not a mapping of options" in mistake(import_aim, directory)
    (directory / "config.json").write_text("{")
    assert "not readable JSON" in mistake(import_aim, directory)


def test_from_pretrained_is_strict(tmp_path):
    directory = export_aim(aim(), tmp_path / "out", tokenizer=vq())
    weights = export_weights()
    weights["mamba.surplus"] = torch.zeros(1)
    save_file(weights, directory / "model.safetensors")
    assert "surplus: surplus" in mistake(AiMPipeline.from_pretrained, directory)


SHARD = "model-1.safetensors"
WRONG_INDICES = [
    (lambda names: {}, "no weight_map"),
    (lambda names: dict.fromkeys(names, f"../{SHARD}"), "no weight_map"),
    (lambda names: names | {"mamba.more": SHARD}, "index.json and its files differ in mamba.more (1 names)"),
    (lambda names: names | {"mamba.more": "model-2.safetensors"}, "model-2.safetensors does not exist"),
    (lambda names: dict(sorted(names.items())[1:]), "index.json and its files differ in mamba."),
    (lambda names: dict.fromkeys(names, "model-1.bin"), "model-1.bin holds list, no mapping from names to tensors"),
]


@pytest.mark.parametrize(("change", "words"), WRONG_INDICES)
def test_a_wrong_index_of_shards(tmp_path, change, words):
    directory, weights = export_aim(aim(), tmp_path / "out", tokenizer=vq()), export_weights()
    (directory / "model.safetensors").unlink()
    save_file(weights, directory / SHARD)
    torch.save([1], directory / "model-1.bin")
    index = {"weight_map": change(dict.fromkeys(weights, SHARD))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert words in mistake(import_aim, directory)
