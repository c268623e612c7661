"""Weights from files, directories, runs and checkpoints of any form."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import TINY, assert_user_error
from safetensors.torch import save_file
from weights.makers import SMALL_VQ, aim, published, same, vq, write_run

from aim_lightning import load
from aim_lightning.models import AiM, AiMConfig, VQConfig, VQModel
from aim_lightning.pipeline import load_tokenizer
from aim_lightning.weights import export_aim, import_aim, import_vq, read_source
from aim_lightning.weights.infer_config import aim_config, vq_config
from aim_lightning.weights.inspect import inspect
from aim_lightning.weights.source import MAIN

SMALL = {"image_size": 4, "norm_groups": 4}


def separate(weights):
    """Copy tensors, since safetensors refuses shared memory."""
    return {name: value.clone().contiguous() for name, value in weights.items()}


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin", "pth"])
@pytest.mark.parametrize("head", [True, False], ids=["head", "no head"])
def test_published_files(tmp_path, suffix, head):
    model, tokenizer = aim(), vq()
    weights, path = separate(published(model, tokenizer, head)), tmp_path / f"aim.{suffix}"
    save_file(weights, path) if suffix == "safetensors" else torch.save(weights, path)
    assert same(import_aim(path), model) and import_aim(str(path)).config == TINY
    assert same(import_vq(path, norm_groups=4), tokenizer)
    assert import_vq(path, norm_groups=4).config == SMALL_VQ  # 4 codes on 2x2 pixels each


def test_a_file_of_old_torch(tmp_path):
    torch.save(published(aim()), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert same(import_aim(tmp_path / "old.bin"), aim())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "network.", "network._orig_mod."])
def test_prefixes_of_compile_ddp_and_modules(prefix):
    model = aim()
    assert same(import_aim({f"{prefix}{name}": value for name, value in model.state_dict().items()}), model)
    inner = {f"mamba.{name.replace('layers.1.', 'layers.1._orig_mod.')}": v for name, v in model.state_dict().items()}
    assert same(import_aim({f"{prefix}{name}": value for name, value in inner.items()}), model)


def test_head_without_embedding():
    weights = published(aim())
    del weights["mamba.backbone.embeddings.word_embeddings.weight"]
    assert same(import_aim(weights), aim())


def test_llamagen_dictionaries(tmp_path):
    tokenizer, averaged = vq(seed=1), vq(seed=2)
    torch.save({"model": tokenizer.state_dict()}, tmp_path / "vq.pt")
    assert same(import_vq(tmp_path / "vq.pt", **SMALL), tokenizer)
    both = {"model": tokenizer.state_dict(), "ema": averaged.state_dict(), "optimizer": {"state": {}}, "steps": 7}
    torch.save(both, tmp_path / "trained.pt")
    assert same(import_vq(tmp_path / "trained.pt", **SMALL), averaged)
    assert same(import_vq(tmp_path / "trained.pt", raw=True, **SMALL), tokenizer)
    wrapped = {"state_dict": {f"module.{name}": value for name, value in tokenizer.state_dict().items()}}
    assert same(import_vq(wrapped, **SMALL), tokenizer)


def test_the_record_of_used_codes_may_be_absent():
    weights = dict(vq().state_dict())
    del weights["quantize.codebook_used"]
    back = import_vq(weights, **SMALL)
    assert back.config.usage_window == 65536 and not back.quantize.codebook_used.any()
    assert back.weights_hash == vq().weights_hash


@pytest.mark.parametrize("multipliers", [(1, 1, 2, 2, 4), (1, 2, 2, 4)], ids=["VQ-16", "VQ-8"])
def test_published_tokenizer_sizes(multipliers):
    with torch.device("meta"):
        weights = VQModel(VQConfig(channel_multipliers=multipliers)).state_dict()
    assert vq_config(read_source(weights)) == VQConfig(channel_multipliers=multipliers)
    assert vq_config(read_source(weights), image_size=128).image_size == 128


SIZES = {name: AiMConfig.preset(name) for name in ("AiM-B", "AiM-L", "AiM-XL", "AiM-1B")}
SIZES["single"] = replace(SIZES["AiM-L"], num_groups=1)
SIZES["none with MLP"] = replace(SIZES["AiM-L"], adaln="none", d_intermediate=512)


@pytest.mark.parametrize("config", SIZES.values(), ids=SIZES)
def test_configuration_from_full_size_shapes(config):
    with torch.device("meta"):
        weights = {f"mamba.{name}": value for name, value in AiM(config).state_dict().items()}
    del weights["mamba.lm_head.weight"]
    assert aim_config(read_source(weights)) == config


def test_runs_and_checkpoints_averaged_or_raw(tmp_path):
    model, averaged = aim(seed=1), aim(seed=2)
    run = write_run(tmp_path / "exp" / "main", model, dict(averaged.state_dict()))
    checkpoint = run / "checkpoints" / "step=00000001.ckpt"
    for source in (run, checkpoint, torch.load(checkpoint, weights_only=True)):
        assert same(import_aim(source), averaged) and same(import_aim(source, raw=True), model)
        assert import_aim(source).config == TINY
    without = write_run(tmp_path / "exp" / "other", model)
    assert same(import_aim(without), model)


def test_tokenizer_of_a_run_or_of_a_published_aim_serves_a_run(tmp_path):
    tokenizer = vq()
    run = write_run(tmp_path / "vq" / "main", tokenizer, {name: v * 2 for name, v in tokenizer.state_dict().items()})
    assert torch.equal(import_vq(run).quant_conv.weight, tokenizer.quant_conv.weight * 2)
    assert same(import_vq(run, raw=True), tokenizer)
    directory = export_aim(aim(), tmp_path / "hf", tokenizer=tokenizer)
    assert not any(parameter.requires_grad for parameter in load_tokenizer(directory).parameters())
    facts = {"tokenizer_hash": tokenizer.weights_hash, "class_names": ["a", "b", "c"]}
    aim_run = write_run(tmp_path / "aim" / "main", aim(), **facts)
    pipeline = load(aim_run, tokenizer=load_tokenizer(directory))
    assert same(pipeline.aim, aim()) and pipeline.class_names == ["a", "b", "c"]


def published_directory(directory, main: str, config=TINY):
    """Write a Hugging Face directory whose weights are in `main`, a file or the index of two shards."""
    model, tokenizer = aim(config), vq()
    export_aim(model, directory, tokenizer=tokenizer)
    (directory / "model.safetensors").unlink()
    weights = separate(published(model, tokenizer, head=False))
    save = save_file if ".safetensors" in main else torch.save
    if not main.endswith(".index.json"):
        save(weights, directory / main)
        return directory
    stem, suffix = main.removesuffix(".index.json").split(".")
    names = sorted(weights)
    shards = {f"{stem}-00001-of-00002.{suffix}": names[:40], f"{stem}-00002-of-00002.{suffix}": names[40:]}
    for file, part in shards.items():
        save({name: weights[name] for name in part}, directory / file)
    (directory / main).write_text(json.dumps({"weight_map": {name: file for file in shards for name in shards[file]}}))
    return directory


@pytest.mark.parametrize("main", MAIN)
def test_directories_and_their_files(tmp_path, main):
    """A file of a directory is read with the configuration of the directory."""
    directory = published_directory(tmp_path / "out", main, replace(TINY, token_dropout=0.25))
    for source in (directory, directory / main):
        assert import_aim(source).config.token_dropout == 0.25
        assert same(import_aim(source), aim()) and same(import_vq(source), vq())
        files = {Path(name) for name, _, _ in inspect(source).files}
        assert files == {path for path in directory.iterdir() if path.suffix != ".json"}


@pytest.mark.parametrize("main", MAIN)
def test_without_config_json_the_shapes_determine_the_network(tmp_path, main):
    directory = published_directory(tmp_path / "out", main)
    (directory / "config.json").unlink()
    for source in (directory, directory / main):
        assert same(import_aim(source), aim()) and import_aim(source).config == TINY
        assert import_vq(source, norm_groups=4).config == SMALL_VQ


def test_a_file_that_is_named_is_the_one_that_is_read(tmp_path):
    directory = export_aim(aim(seed=1), tmp_path / "out", tokenizer=vq())
    torch.save(published(aim(seed=2)), directory / "pytorch_model.bin")
    assert same(import_aim(directory), aim(seed=1))
    assert same(import_aim(directory / "pytorch_model.bin"), aim(seed=2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_become_float32(tmp_path, dtype):
    weights = {name: value.to(dtype) for name, value in published(aim(), head=False).items()}
    save_file(separate(weights), tmp_path / "half.safetensors")
    for name, value in import_aim(tmp_path / "half.safetensors").state_dict().items():
        expected = weights["mamba." + name.replace("lm_head", "backbone.embeddings.word_embeddings")]
        assert value.dtype == torch.float32 and torch.equal(value, expected.float())


def test_aim_without_positions_needs_the_grid():
    model = aim(replace(TINY, position_embedding=False))
    assert_user_error("num_tokens; give it", import_aim, published(model))
    assert same(import_aim(published(model), num_tokens=4), model)
