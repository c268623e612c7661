"""Numbers out of range are refused before anything is built, with the file or option that sets them."""

import math

import pytest
from conftest import ROOT
from helpers import assert_contains, assert_user_error

from aim_lightning.cli.config import DEFAULTS
from aim_lightning.cli.main import main
from aim_lightning.cli.sections import SECTIONS
from aim_lightning.cli.value_ranges import RANGES, check_ranges
from aim_lightning.config import compose
from aim_lightning.config.signature import find_class, parameters

DEMO = ROOT / "experiments/demo_aim.yaml"


def check(*overrides):
    check_ranges(compose([DEFAULTS, DEMO], list(overrides)), SECTIONS)


CASES = [
    ("trainer.gradient_clip_val", "-1", "is -1; it must be 0 or more (0 = no clipping)"),
    ("trainer.gradient_clip_val", ".nan", "is nan; it must be 0 or more"),
    ("trainer.max_steps", "-2", "it must be -1 or more (-1 = no limit)"),
    ("trainer.val_check_interval", "0", "a whole number, 1 or more, or a share"),
    ("trainer.val_check_interval", "0.0", "a whole number, 1 or more, or a share"),
    ("trainer.limit_val_batches", "1.5", "a share of at most 1.0"),
    ("trainer.log_every_n_steps", "0", "1 or more"),
    ("trainer.num_nodes", "0", "1 or more"),
    ("model.optimizer.base_learning_rate", ".inf", "base_learning_rate is inf; it must be a finite number"),
    ("model.optimizer.betas", "[.nan, 0.9]", "betas[0] is nan"),
    ("sampling.cfg_scale", "-.inf", "cfg_scale is -inf"),
    ("data.val_batch_size", "0", "data.init_args.val_batch_size is 0; it must be 1 or more"),
    ("data.num_workers", "-1", "num_workers is -1; it must be 0 or more"),
    ("images.pad", "-1", "images.pad is -1"),
    ("callbacks.sample_metrics.num_samples", "1", "num_samples is 1; it must be 2 or more"),
    ("seed_everything", "-1", "seed_everything is -1; it must be from 0 to 4294967295"),
    ("seed_everything", "4294967296", "seed_everything is 4294967296"),
    ("trainer.strategy", "ddp_spawn", "it must be one of auto, ddp,"),
    ("trainer.strategy", "fsdp", "cannot resume at the exact step"),
    ("trainer.accelerator", "tpu", "it must be one of auto, cpu, gpu"),
]


@pytest.mark.parametrize(("key", "value", "words"), CASES)
def test_numbers_out_of_range_are_refused_with_key_and_range(key, value, words):
    assert_contains(str(assert_user_error(r"^command line: ", check, (key, value))), [words, key.rpartition(".")[2]])


BOUNDS = "trainer.gradient_clip_val=0 trainer.gradient_clip_val=null trainer.max_steps=-1 trainer.limit_val_batches=0"
BOUNDS += " trainer.val_check_interval=1.0 trainer.val_check_interval=00:30:00:00 trainer.devices=auto"
BOUNDS += f" trainer.enable_checkpointing=true sampling.batch_size=auto seed_everything={2**32 - 1}"


@pytest.mark.parametrize("override", BOUNDS.split())
def test_values_at_the_bounds_are_accepted(override):
    check(override.split("="))


def test_every_range_names_an_existing_argument():
    classes = {
        "Trainer": "lightning.pytorch.Trainer",
        "AiMModule": "aim_lightning.modules.aim.AiMModule",
        "TokenizerModule": "aim_lightning.modules.tokenizer.TokenizerModule",
        "TokenDataModule": "aim_lightning.data.tokens.datamodule.TokenDataModule",
        "ImageDataModule": "aim_lightning.data.images.datamodule.ImageDataModule",
        "Images": "aim_lightning.data.images.dataset.Images",
        "SampleGrid": "aim_lightning.callbacks.logging.image_logging.SampleGrid",
        "Reconstructions": "aim_lightning.callbacks.logging.image_logging.Reconstructions",
        "SampleMetrics": "aim_lightning.callbacks.evaluation.sample_metrics.SampleMetrics",
        "ReconstructionMetrics": "aim_lightning.callbacks.evaluation.reconstruction_metrics.ReconstructionMetrics",
        "TrainingEvaluation": "aim_lightning.callbacks.evaluation.training_evaluation.TrainingEvaluation",
    }
    for option in RANGES.keys() - {"seed_everything"}:
        name, argument = option.split(".")[:2]
        assert argument in parameters(find_class(classes[name], name)), option


@pytest.mark.parametrize("option", ["--seed_everything=-1", "--seed_everything=1.5", "--trainer.strategy=deepspeed"])
def test_the_command_line_refuses_them_with_exit_code_two(capsys, tmp_path, option):
    assert main(["fit", "--config", str(DEMO), "--runs_root", str(tmp_path / "runs"), option]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: command line: ") and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_infinity_is_outside_every_range():
    assert not any(allowed.contains(math.nan) for allowed in RANGES.values() if hasattr(allowed, "low"))
