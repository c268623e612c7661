"""`aim-lightning tokenize` as a command: both splits, and mistakes before any work."""

import numpy as np
import pytest
import torch
from PIL import Image

from aim_lightning.cli.main import main
from aim_lightning.data.tokens.format.manifest import TokenManifest

CONFIG = """
experiment: images_to_tokens
runs_root: {root}/runs
images: {{train: {root}/images, val: {root}/images, image_size: 16}}
data:
  class_path: aim_lightning.data.images.datamodule.ImageDataModule
  init_args: {{images: "${{images}}", global_batch_size: 4, out: {root}/tokens}}
tokenizer:
  class_path: aim_lightning.models.vq.model.VQModel
  init_args:
    config: {{image_size: 16, codebook_size: 16, base_channels: 8, channel_multipliers: [1, 1], num_res_blocks: 1,
      z_channels: 8, norm_groups: 4}}
trainer: {{accelerator: cpu, devices: 1}}
"""


@pytest.fixture
def experiment(tmp_path):
    """Its file; 6 images of 2 classes serve both splits."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{i}.png")
    file = tmp_path / "experiment.yaml"
    file.write_text(CONFIG.format(root=tmp_path))
    return file


def tokenize(experiment, *options) -> int:
    return main(["tokenize", "--config", str(experiment), *options])


def test_both_splits_are_written(experiment, capsys):
    out = experiment.parent / "tokens"
    torch.manual_seed(0)  # the configured tokenizer has random weights
    assert tokenize(experiment, "--views", "center_flip") == 0
    assert [TokenManifest.load(out / split).views for split in ("train", "val")] == [2, 1]
    assert f"token shards: {out}/train and {out}/val\n" in capsys.readouterr().out
    torch.manual_seed(0)
    assert tokenize(experiment, "--views", "center_flip") == 0
    assert f"token shards: {out}/train and {out}/val (already complete)\n" in capsys.readouterr().out


def test_the_section_gives_the_defaults_and_the_command_line_wins(experiment):
    with experiment.open("a") as file:
        file.write("tokenize: {views: ten_crop, crop_range: [1.3, 1.2], rows_per_shard: 4}\n")
    for options, views, shards in (((), 20, 2), (("--views", "center_flip", "--rows_per_shard", "5"), 2, 2)):
        out = experiment.parent / f"tokens{views}"
        assert tokenize(experiment, *options, "--data.out", str(out)) == 0
        manifest = TokenManifest.load(out / "train")
        assert (manifest.views, len(manifest.shards)) == (views, shards)
    assert [shard.rows for shard in manifest.shards] == [5, 1]


CASES = [
    ("{view: center}", "tokenize.view is not an option of TokenizeSection; did you mean views?"),
    ("{batch_size: many}", "tokenize.batch_size is 'many'; expected int"),
    ("{views: ten}", "views is 'ten'; use one of center, center_flip, ten_crop"),
]


@pytest.mark.parametrize(("section", "words"), CASES)
def test_errors_in_the_section_are_one_line(experiment, capsys, section, words):
    with experiment.open("a") as file:
        file.write(f"tokenize: {section}\n")
    assert tokenize(experiment) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (experiment.parent / "tokens").exists()


def test_a_foreign_val_directory_stops_before_anything_is_written(experiment, capsys):
    out = experiment.parent / "tokens"
    (out / "val").mkdir(parents=True)
    (out / "val" / "of_others.tar").write_bytes(b"")
    assert tokenize(experiment) == 2
    error = capsys.readouterr().err
    assert error == f"error: {out}/val holds tar files that tokenize did not write; set data.out to a new directory\n"
    assert not (out / "train").exists()
