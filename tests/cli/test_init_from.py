"""`model.init_from`: training from given weights."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, TINY_VQ, assert_contains, assert_user_error, write_tokens
from integration.tiny import write_experiment
from weights.makers import SMALL_VQ, aim, published, same, vq, write_run

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.cli.build.init_from import start_from
from aim_lightning.models import VQModel
from aim_lightning.runs.directory import newest_checkpoint
from aim_lightning.weights import export_aim, export_vq
from aim_lightning.weights.load import CLASSES, POSITIONS


def load(source, network, manifest=None):
    start_from(SimpleNamespace(network=network), source, manifest)
    return network


def test_a_published_file_is_loaded_strictly(tmp_path):
    torch.manual_seed(0)
    source, file = VQModel(TINY_VQ), tmp_path / "vq.pt"
    torch.save({"model": source.state_dict(), "steps": 3}, file)
    assert load(file, VQModel(TINY_VQ)).weights_hash == source.weights_hash
    weights = source.state_dict()
    weights["encoder.more"] = weights.pop("quant_conv.bias")
    torch.save({"model": weights}, file)
    assert_user_error("missing: quant_conv.bias; surplus: encoder.more", load, file, VQModel(TINY_VQ))


def test_a_file_without_a_tokenizer_is_one_line(tmp_path):
    file, network = tmp_path / "vq.pt", VQModel(TINY_VQ)
    assert_user_error("does not exist", load, file, network)
    torch.save({"weights": {}}, file)
    assert_user_error(r"holds no|tensor", load, file, network)
    file.write_bytes(b"x")
    assert_user_error("damaged", load, file, network)


def test_fit_starts_from_another_grid_and_other_classes(tmp_path, succeed, own_signals):
    source = aim(replace(TINY, num_tokens=16, num_classes=5))
    directory = export_aim(source, tmp_path / "published", tokenizer=vq())
    still = ("--model.optimizer.base_learning_rate", "1e-12", "--trainer.max_steps", 1)
    experiment = write_experiment(tmp_path, tokenizer_hash=vq().weights_hash)
    text = succeed("fit", "--config", experiment, "--model.init_from", directory, *still)
    classes = f"  {CLASSES}: 3 fresh classes in place of 5, the null class is kept"
    assert_contains(text, [f"weights from {directory}", classes, f"  {POSITIONS}: resized from 4x4 to 2x2 codes"])
    weights = read_checkpoint(newest_checkpoint(tmp_path / "runs" / "tiny" / "main"))["network"]
    for name, value in source.state_dict().items():
        if name not in (CLASSES, POSITIONS):
            assert torch.allclose(weights[name], value, atol=1e-6), name
    assert torch.allclose(weights[CLASSES][-1], source.state_dict()[CLASSES][-1], atol=1e-6)
    assert (len(weights[CLASSES]), len(weights[POSITIONS])) == (4, 5)


def test_fit_from_another_depth_is_one_line(tmp_path, fail, own_signals):
    directory = export_aim(aim(replace(TINY, n_layer=1)), tmp_path / "published")
    error = fail("fit", "--config", write_experiment(tmp_path), "--model.init_from", directory)
    assert error == f"error: {directory} is another network than model.network: n_layer is 1 there and 2 here\n"


def test_weights_of_another_network_are_one_line(tmp_path):
    run = write_run(tmp_path / "run", vq())
    cases = [
        ("vq holds no AiM, only a tokenizer", export_vq(vq(), tmp_path / "vq"), aim()),
        ("d_model is 64 there and 32 here", published(aim(replace(TINY, d_model=64))), aim()),
        ("aim holds no tokenizer, only AiM", export_aim(aim(), tmp_path / "aim"), vq()),
        ("network than model.network: norm_groups is 4 there and 2 here", run, vq(replace(SMALL_VQ, norm_groups=2))),
    ]
    for text, source, network in cases:
        assert_user_error(text, load, source, network)
    other = vq(replace(SMALL_VQ, image_size=8, usage_window=5), seed=5)  # options that do not change the weights
    assert load(run, other).weights_hash == vq().weights_hash


def test_an_aim_without_positions_fits_any_grid(tmp_path):
    config = replace(TINY, position_embedding=False)
    network = aim(replace(config, num_tokens=16), seed=2)
    for source in (published(aim(config)), export_aim(aim(config), tmp_path / "aim")):
        assert same(load(source, network), aim(config))


@pytest.mark.parametrize("form", ["directory", "run"])
def test_fit_on_codes_of_another_tokenizer_is_refused(tmp_path, fail, own_signals, form):
    source = export_aim(aim(), tmp_path / "published", tokenizer=vq())
    if form == "run":
        source = write_run(tmp_path / "before" / "main", aim(), tokenizer_hash=vq().weights_hash)
    experiment = write_experiment(tmp_path, tokenizer_hash=vq(seed=9).weights_hash)
    error = fail("fit", "--config", experiment, "--model.init_from", source)
    trained, stored = vq().weights_hash[:12], vq(seed=9).weights_hash[:12]
    assert f"was trained on the codes of another tokenizer (weights hash {trained}…)" in error
    assert f"wrote the token shards ({stored}…); tokenize the images with that one" in error
    assert not (tmp_path / "runs" / "tiny" / "main" / "config.yaml").exists()


def test_weights_that_do_not_name_their_tokenizer_are_accepted(tmp_path):
    manifest = write_tokens(tmp_path, [4], tokenizer_hash=vq().weights_hash)
    assert same(load(export_aim(aim(), tmp_path / "published"), aim(seed=2), manifest), aim())


@pytest.mark.parametrize("names", [["class0", "class1", "class2"], ["class0", "cat", "dog"]])
def test_other_names_for_as_many_classes_are_reported(tmp_path, capsys, names):
    load(write_run(tmp_path / "run", aim(), class_names=names), aim(seed=2), write_tokens(tmp_path, [4]))
    note = f"  {CLASSES}: kept, though class 1 is 'cat' there and 'class1' here"
    assert (note in capsys.readouterr().out) == (names[1] == "cat")
