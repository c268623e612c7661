"""Starting from given weights."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, TINY_VQ, assert_user_error, write_tokens
from integration.tiny import write_experiment
from weights.makers import SMALL_VQ, aim, published, same, vq, write_run

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.cli.build.init_from import start_from
from aim_lightning.cli.main import main
from aim_lightning.models import VQModel
from aim_lightning.runs.directory import newest_checkpoint
from aim_lightning.utils.errors import UserError
from aim_lightning.weights import export_aim, export_vq
from aim_lightning.weights.load import CLASSES, POSITIONS


def test_a_published_file_is_loaded_strictly(tmp_path):
    torch.manual_seed(0)
    given, network = VQModel(TINY_VQ), VQModel(TINY_VQ)
    file = tmp_path / "vq.pt"
    torch.save({"model": given.state_dict(), "steps": 3}, file)
    start_from(SimpleNamespace(network=network), file)
    assert network.weights_hash == given.weights_hash
    weights = given.state_dict()
    weights["encoder.more"] = weights.pop("quant_conv.bias")
    torch.save({"model": weights}, file)
    with pytest.raises(UserError, match=r"missing: quant_conv.bias; surplus: encoder.more"):
        start_from(SimpleNamespace(network=network), file)


def test_what_is_no_tokenizer_is_one_line(tmp_path):
    network = VQModel(TINY_VQ)
    assert_user_error("does not exist", start_from, SimpleNamespace(network=network), tmp_path / "vq.pt")
    torch.save({"weights": {}}, tmp_path / "vq.pt")
    assert_user_error(r"holds no|tensor", start_from, SimpleNamespace(network=network), tmp_path / "vq.pt")
    (tmp_path / "vq.pt").write_bytes(b"x")
    assert_user_error("damaged", start_from, SimpleNamespace(network=network), tmp_path / "vq.pt")


def test_fit_starts_from_another_grid_and_other_classes(tmp_path, capsys, own_signals):
    source = aim(replace(TINY, num_tokens=16, num_classes=5))
    directory = export_aim(source, tmp_path / "published", tokenizer=vq())
    still = ("--model.optimizer.base_learning_rate", "1e-12", "--trainer.max_steps", "1")
    experiment = write_experiment(tmp_path, tokenizer_hash=vq().weights_hash)
    options = ("--config", experiment, "--model.init_from", directory, *still)
    assert main([str(word) for word in ("fit", *options)]) == 0
    text = capsys.readouterr().out
    assert f"weights from {directory}" in text
    assert f"  {CLASSES}: 3 fresh classes in place of 5, the null class is kept" in text
    assert f"  {POSITIONS}: resized from 4x4 to 2x2 codes" in text
    weights = read_checkpoint(newest_checkpoint(tmp_path / "runs" / "tiny" / "main"))["network"]
    for name, value in source.state_dict().items():
        if name not in (CLASSES, POSITIONS):
            assert torch.allclose(weights[name], value, atol=1e-6), name
    assert torch.allclose(weights[CLASSES][-1], source.state_dict()[CLASSES][-1], atol=1e-6)
    assert (len(weights[CLASSES]), len(weights[POSITIONS])) == (4, 5)


def test_fit_from_another_depth_is_one_line(tmp_path, capsys, own_signals):
    directory = export_aim(aim(replace(TINY, n_layer=1)), tmp_path / "published")
    options = ("--config", write_experiment(tmp_path), "--model.init_from", directory)
    assert main([str(word) for word in ("fit", *options)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == f"error: {directory} is another network than model.network: n_layer is 1 there and 2 here"


def test_weights_of_another_network_are_one_line(tmp_path):
    with pytest.raises(UserError, match="vq holds no AiM, only a tokenizer"):
        start_from(SimpleNamespace(network=aim()), export_vq(vq(), tmp_path / "vq"))
    with pytest.raises(UserError, match="d_model is 64 there and 32 here"):
        start_from(SimpleNamespace(network=aim()), published(aim(replace(TINY, d_model=64))))
    with pytest.raises(UserError, match="aim holds no tokenizer, only AiM"):
        start_from(SimpleNamespace(network=vq()), export_aim(aim(), tmp_path / "aim"))
    run = write_run(tmp_path / "run", vq())
    with pytest.raises(UserError, match=r"is another network than model.network: norm_groups is 4 there and 2 here"):
        start_from(SimpleNamespace(network=vq(replace(SMALL_VQ, norm_groups=2))), run)
    other = vq(replace(SMALL_VQ, image_size=8, usage_window=5), seed=5)  # what goes with the same weights may differ
    start_from(SimpleNamespace(network=other), run)
    assert other.weights_hash == vq().weights_hash


def test_an_aim_without_positions_fits_any_grid(tmp_path):
    config = replace(TINY, position_embedding=False)
    network = aim(replace(config, num_tokens=16), seed=2)
    for source in (published(aim(config)), export_aim(aim(config), tmp_path / "aim")):
        start_from(SimpleNamespace(network=network), source)
        assert same(network, aim(config))


@pytest.mark.parametrize("form", ["directory", "run"])
def test_fit_on_codes_of_another_tokenizer_is_refused(tmp_path, capsys, own_signals, form):
    source = export_aim(aim(), tmp_path / "published", tokenizer=vq())
    if form == "run":
        source = write_run(tmp_path / "before" / "main", aim(), tokenizer_hash=vq().weights_hash)
    experiment = write_experiment(tmp_path, tokenizer_hash=vq(seed=9).weights_hash)
    assert main(["fit", "--config", str(experiment), "--model.init_from", str(source)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    theirs, ours = vq().weights_hash[:12], vq(seed=9).weights_hash[:12]
    assert f"was trained on the codes of another tokenizer (weights hash {theirs}…)" in error
    assert f"wrote the token shards ({ours}…); tokenize the images with that one" in error
    assert not (tmp_path / "runs" / "tiny" / "main" / "config.yaml").exists()


def test_weights_that_do_not_name_their_tokenizer_are_taken(tmp_path):
    manifest, network = write_tokens(tmp_path, [4], tokenizer_hash=vq().weights_hash), aim(seed=2)
    start_from(SimpleNamespace(network=network), export_aim(aim(), tmp_path / "published"), manifest)
    assert same(network, aim())


def test_other_names_for_as_many_classes_are_reported(tmp_path, capsys):
    manifest = write_tokens(tmp_path, [4])
    for names in (manifest.class_names, ["class0", "cat", "dog"]):
        source = write_run(tmp_path / names[1], aim(), class_names=names)
        start_from(SimpleNamespace(network=aim(seed=2)), source, manifest)
        told = f"  {CLASSES}: kept, though class 1 is 'cat' there and 'class1' here" in capsys.readouterr().out
        assert told == (names[1] == "cat")
