"""Numbers out of range are refused before anything is built, with the file or option that sets them."""

import math

import pytest
from conftest import ROOT
from helpers import assert_user_error

from aim_lightning.cli.config import DEFAULTS, SECTIONS, Config
from aim_lightning.cli.value_ranges import ARGUMENTS, TRAINER, check_ranges
from aim_lightning.config.compose import compose
from aim_lightning.config.signature import find_class, parameters

DEMO = ROOT / "experiments/demo_aim.yaml"


def check(*overrides):
    check_ranges(compose([DEFAULTS, DEMO], list(overrides)), SECTIONS)


def test_an_integer_beyond_floats_is_out_of_range():
    assert_user_error("^command line: .* it must be from 0 to 4294967295", check, ("seed_everything", "9" * 400))


BOUNDS = "trainer.gradient_clip_val=0 trainer.gradient_clip_val=null trainer.max_steps=-1 trainer.limit_val_batches=0"
BOUNDS += " trainer.val_check_interval=1.0 trainer.val_check_interval=00:30:00:00 trainer.devices=auto"
BOUNDS += f" trainer.enable_checkpointing=true sampling.batch_size=auto seed_everything={2**32 - 1}"
BOUNDS += " callbacks.other.class_path=lightning.pytorch.callbacks.Timer callbacks.other.every_n_steps=-1"


@pytest.mark.parametrize("override", BOUNDS.split())
def test_values_at_the_bounds_are_accepted(override):
    check(override.split("="))


CLASSES = "modules.aim.AiMModule modules.tokenizer.TokenizerModule data.tokens.datamodule.TokenDataModule"
CLASSES += " data.images.datamodule.ImageDataModule data.images.dataset.Images cli.commands.tokenize.TokenizeSection"
CLASSES += " callbacks.logging.image_logging.SampleGrid callbacks.logging.image_logging.Reconstructions"
CLASSES += " callbacks.evaluation.sample_metrics.SampleMetrics modules.adversary.AdversarialConfig"
CLASSES += " callbacks.evaluation.training_evaluation.TrainingEvaluation"


def test_every_range_names_an_existing_argument():
    arguments = set().union(*(parameters(find_class(f"aim_lightning.{name}", name)) for name in CLASSES.split()))
    assert ARGUMENTS.keys() <= arguments
    assert TRAINER.keys() <= parameters(find_class("lightning.pytorch.Trainer", "trainer")).keys()
    ranges = [allowed for allowed in (ARGUMENTS | TRAINER).values() if hasattr(allowed, "low")]
    assert not any(allowed.contains(math.nan) for allowed in ranges)


BLAMED = [
    ("VQConfig.norm_groups is 7; it must divide 16", "x.yaml: model.network.norm_groups is 7; it must divide 16"),
    ("model.network.norm_groups is 7; …", "x.yaml: model.network.norm_groups is 7; …"),
    ("sampling: top_k is -1; …", "command line: sampling.top_k is -1; …"),
    ("callbacks.ema.decay is 2; …", "callbacks.ema.decay is 2; …"),  # a default
    ("VQConfig.norm_groups is 8; …", "VQConfig.norm_groups is 8; …"),
    ("y.yaml: model.network is bad", "y.yaml: model.network is bad"),
    ("model is unknown", "model is unknown"),
]


@pytest.mark.parametrize(("message", "blamed"), BLAMED)
def test_errors_of_constructors_name_the_file_and_key_that_set_the_value(message, blamed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("model: {class_path: a.B, init_args: {network: {norm_groups: 7}}}\n")
    config = Config(**vars(compose(["x.yaml"], [("sampling.top_k", "-1")])))
    assert config.blame(message) == blamed
