"""A tokenizer that is no VQModel, from images to samples by the command line alone."""

import numpy as np
import pytest
import torch
from helpers import assert_user_error
from PIL import Image

import aim_lightning
from aim_lightning.cli.main import main
from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.pipeline import load_tokenizer
from aim_lightning.pipeline.pixel_decoder import largest_output
from aim_lightning.utils.errors import UserError

MODULE = '''
import torch


class MeanColour(torch.nn.Module):
    """The brightness of each quarter of an image, in 16 levels."""

    def __init__(self, levels: int = 16, side: int = 16) -> None:
        super().__init__()
        self.codebook_size, self.side, self.grid = levels, side, (2, 2)
        self.register_buffer("brightness", torch.linspace(-1, 1, levels))

    @property
    def weights_hash(self) -> str:
        return f"mean-colour-{self.codebook_size}"

    def encode(self, images_BCHW):
        means_BHW = torch.nn.functional.adaptive_avg_pool2d(images_BCHW, self.grid).mean(1)
        return (means_BHW.flatten(1)[..., None] - self.brightness).abs().argmin(-1)

    def decode(self, codes_BL):
        values_BCHW = self.brightness[codes_BL].view(-1, 1, *self.grid).expand(-1, 3, -1, -1)
        return torch.nn.functional.interpolate(values_BCHW, size=(self.side, self.side))


class Half(torch.nn.Module):
    grid = (2, 2)

    def encode(self, images_BCHW):
        return None


class NoModule:
    pass
'''
TOKENIZER = "tokenizer: {class_path: mean_colour_of_tests.MeanColour, init_args: {levels: 16}}\n"
IMAGES = """
images: {{train: {root}/train, val: {root}/val, image_size: 16}}
trainer: {{accelerator: cpu, devices: 1}}
runs_root: {root}/runs
"""
TOKENIZE = """
include: [tokenizer.yaml, images.yaml]
experiment: mine_tokens
data:
  class_path: aim_lightning.data.images.datamodule.ImageDataModule
  init_args: {{images: "${{images}}", global_batch_size: 8, out: {root}/tokens}}
"""
FIT = """
include: [tokenizer.yaml, images.yaml]
experiment: mine
model:
  class_path: aim_lightning.modules.aim.AiMModule
  init_args:
    network: {{d_model: 32, n_layer: 1, vocab_size: 16, num_classes: 2, num_tokens: 4, d_state: 8, headdim: 16}}
    optimizer: {{base_learning_rate: 0.1}}
    global_batch_size: ${{data.init_args.global_batch_size}}
data:
  class_path: aim_lightning.data.tokens.datamodule.TokenDataModule
  init_args: {{path: {root}/tokens, global_batch_size: 8, val_batch_size: 8}}
callbacks:
  grid: {{class_path: aim_lightning.callbacks.logging.image_logging.SampleGrid, init_args: {{classes: 2, columns: 2}}}}
  checkpoints: {{class_path: aim_lightning.callbacks.training.checkpoints.Checkpoints, init_args: {{every_n_steps: 2}}}}
trainer: {{max_steps: 2, val_check_interval: 2, check_val_every_n_epoch: null, enable_progress_bar: false}}
"""
FILES = {"tokenizer": TOKENIZER, "images": IMAGES, "tokenize": TOKENIZE, "fit": FIT}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images, configurations and the tokenizer's module, which can be imported."""
    root, rng = tmp_path_factory.mktemp("foreign"), np.random.default_rng(0)
    (root / "mean_colour_of_tests.py").write_text(MODULE)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    for name, text in FILES.items():
        (root / f"{name}.yaml").write_text(text.format(root=root) if name != "tokenizer" else text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        yield root


@pytest.fixture
def call(root, capsys):
    """One command; returns its text."""

    def run(*words, code: int = 0) -> str:
        assert main([str(word) for word in words]) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    return run


def test_from_images_to_samples(root, call, own_signals):
    call("tokenize", "--config", root / "tokenize.yaml")
    manifest = TokenManifest.load(root / "tokens" / "train")
    assert (manifest.tokenizer_hash, manifest.codebook_size, manifest.grid) == ("mean-colour-16", 16, (2, 2))
    for file in ("tokenizer.yaml", "fit.yaml"):  # the key alone, or a whole experiment
        assert "no faults" in call("shards", "verify", root / "tokens", "--tokenizer", root / file)
    call("shards", "preview", root / "tokens", "--tokenizer", root / "tokenizer.yaml", "--num", 4)
    assert Image.open(root / "tokens" / "train" / "preview.png").size[0] > 16

    run = root / "runs" / "mine" / "main"
    call("fit", "--config", root / "fit.yaml")
    assert (run / "samples" / "grid.png").exists()
    more = ("--trainer.max_steps", 4, "--allow_changes", "true")
    call("fit", "--config", root / "fit.yaml", *more)
    call("sample", "--config", root / "fit.yaml", "--num", 2, "--out", root / "out")
    assert len(list((root / "out").glob("cat-*.png"))) == 2

    with pytest.raises(UserError, match=r"of class mean_colour_of_tests\.MeanColour; pass tokenizer="):
        aim_lightning.load(run)  # a checkpoint runs no code
    tokenizer = load_tokenizer({"class_path": "mean_colour_of_tests.MeanColour"})
    assert aim_lightning.load(run, tokenizer=tokenizer).generate([0, 1]).shape == (2, 3, 16, 16)
    assert largest_output(tokenizer, torch.device("cpu")) == 3 * 16 * 16  # it has no modules inside
    assert tokenizer.brightness.requires_grad is False and not tokenizer.training
    other = {"class_path": "mean_colour_of_tests.MeanColour", "init_args": {"levels": 8}}
    assert_user_error("codes of another tokenizer", aim_lightning.load, run, tokenizer=load_tokenizer(other))


def test_options_of_the_class_are_in_the_help_and_can_be_set(root, call):
    text = call("fit", "--config", root / "fit.yaml", "--help")
    assert "--tokenizer.levels [int] 16" in text and "--tokenizer.class_path" in text
    assert "levels: 12" in call("config", "--config", root / "fit.yaml", "--tokenizer.levels", 12)


CASES = [
    (["--tokenizer.levels", "many"], "tokenizer.init_args.levels is 'many'; expected int"),
    (["--tokenizer.depth", "3"], "tokenizer.init_args.depth is not an option of MeanColour"),
    (["--tokenizer.class_path", "mean_colour_of_tests.Nothing"], "has no class Nothing"),
    (["--tokenizer.class_path", "mean_colour_of_tests.Half", "--tokenizer.init_args", "{}"], "has no decode, codeb"),
    (["--tokenizer.class_path", "mean_colour_of_tests.NoModule", "--tokenizer.init_args", "{}"], "tokenizer: "),
]


@pytest.mark.parametrize(("options", "words"), CASES)
def test_mistakes_are_one_line(root, call, options, words):
    text = call("tokenize", "--config", root / "tokenize.yaml", "--data.out", root / "other", *options, code=2)
    assert text.startswith("error: ") and text.count("\n") == 1 and words in text, text


def test_a_mapping_without_a_class(root, call):
    (root / "bad.yaml").write_text("tokenizer: {levels: 3}\n")
    text = call("tokenize", "--config", root / "tokenize.yaml", "--config", root / "bad.yaml", code=2)
    assert "tokenizer.levels is next to class_path" in text
    text = call("shards", "verify", root, "--tokenizer", root / "bad.yaml", code=2)
    assert "tokenizer has no class_path" in text
    text = call("shards", "verify", root, "--tokenizer", root / "images.yaml", code=2)
    assert "images.yaml does not set the key tokenizer" in text
    assert torch.is_grad_enabled()
