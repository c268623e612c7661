"""Help, errors, exit codes and time to answer of `aim-lightning`; mistakes that only training finds."""

import errno
import resource

import pytest
import torch
from helpers import assert_contains

from aim_lightning.cli.main import main
from aim_lightning.utils.errors import TransientError, UserError, disk_mistake

CHECKPOINTS = "aim_lightning.callbacks.training.checkpoints.Checkpoints"
DEMO = "experiments/demo_aim.yaml"
FINETUNE = "--config experiments/imagenet256_tokenizer_finetune.yaml --tokenizer null"
FINETUNE += " --images.train data --images.val data --model.loss.perceptual_weight 0"
SECONDS_TO_ANSWER = 7  # of which the imports of torch and Lightning take 4


def processor_seconds() -> float:
    """Return the processor time of all finished child processes; unlike wall time it is the same on a busy machine."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("command", ["", "fit", "sample", "tokenize", "shards", "dataset"])
def test_help_answers_within_a_second(aim_cli, command):
    start = processor_seconds()
    done = aim_cli(*command.split(), "--help")
    assert done.returncode == 0 and "usage: aim-lightning" in done.stdout
    assert processor_seconds() - start < 1


def test_help_shows_options_with_units_and_present_values(aim_cli):
    text = aim_cli("fit", "--config", DEMO, "--help").stdout
    assert "usage: aim-lightning fit" in text
    assert "--model.network.d_model [int] 96" in text and "width of the residual stream" in text
    assert "--callbacks.ema.decay" in text and "--trainer.max_steps [int] 850" in text


WRONG_ARGUMENTS = [
    ("evaluate DEMO --classes=", ["command line: --classes is empty"]),
    ("fly", ["'fly'", "fit, validate"]),
    ("fit", ["--config experiments/NAME.yaml"]),
    ("fit --config nowhere.yaml", ["nowhere.yaml", "does not exist"]),
    ("fit DEMO --model.network.d_modle 3", ["command line", "d_modle", "did you mean d_model"]),
    ("fit DEMO --trainer.max_steps many", ["trainer.max_steps", "'many'", "expected int"]),
    ("fit DEMO --callbacks.ema.decay fast", ["callbacks.ema", "'fast'", "expected float"]),
    ("fit DEMO --nonsense.x 1", ["nonsense is not a known section"]),
    ("fit DEMO --trainer.limit_train_batches 3", ["limit_train_batches is no option here", "use max_steps"]),
    ("fit DEMO --trainer.fast_dev_run true", ["trainer.fast_dev_run", "--run try"]),
    ("fit DEMO --data.path ???", ["data.init_args.path", "to be given"]),
    ("fit DEMO --model.class_path aim_lightning.modules.aim.Nothing", ["Nothing"]),
    ("sample DEMO --what", ["--what"]),
    ("tokenize DEMO --crop_range wide", ["--crop_range", "'wide'"]),
    ("shards verify nowhere", ["nowhere is no directory", "make tokenize"]),
    ("fit --confg DEMO", ["unrecognized arguments: --confg", "did you mean --config?"]),
    ("evaluate DEMO --seeds 99999999999", ["--seeds is 99999999999", "from 1 to 10000"]),
    ("sweep DEMO --grid=", ["command line: --grid is empty"]),
    ("weights inspect /dev/null", ["weights file /dev/null is no regular file"]),
]


@pytest.mark.parametrize(("arguments", "texts"), WRONG_ARGUMENTS)
def test_mistakes_are_one_line_and_exit_code_two(fail, arguments, texts):
    assert_contains(fail(*arguments.replace("DEMO", f"--config {DEMO}").split()), texts)


def test_a_mistake_in_a_configuration_appears_soon(aim_cli):
    start = processor_seconds()
    done = aim_cli("fit", "--config", DEMO, "--model.network.d_modle", "3")
    assert processor_seconds() - start < SECONDS_TO_ANSWER
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


MISSING_FILES = [
    ("fit", "--data.path nothing/here", ["nothing/here", "make tokenize"]),
    ("validate", "", ["holds no checkpoint", "make train EXP=demo_aim"]),
    ("sample", "", ["holds no checkpoint"]),
    ("tokenize", "", ["holds no checkpoint"]),
    ("tokenize", "--tokenizer weights/x", ["weights/x does not exist; give a weights file", "make weights-vq"]),
    ("fit", f"{FINETUNE} --model.init_from weights/x.pt", ["init_from weights/x.pt does not", "make weights-vq"]),
    ("fit", "--images.train nothing --config experiments/demo_tokenizer.yaml", ["images.train nothing"]),
]


@pytest.mark.parametrize(("command", "options", "texts"), MISSING_FILES)
def test_missing_files_are_one_line_and_leave_nothing_behind(fail, tmp_path, command, options, texts):
    error = fail(command, "--config", DEMO, "--runs_root", tmp_path / "runs", *options.split())
    assert_contains(error, texts)
    assert not (tmp_path / "runs").exists()


WRONG_OPTIONS = [
    ("--model.network.num_res_blocks 0", ["num_res_blocks is 0"]),
    ("--model.network.norm_groups 7", ["norm_groups is 7; it must divide"]),
    ("--data.global_batch_size 7000", ["6000 rows, fewer than data.global_batch_size 7000"]),
    ("--trainer.accelerator gpu", ["trainer: ", "No supported gpu backend"]),
    ("--trainer.devices 3", ["data.global_batch_size 16 does not divide over 3 devices"]),
    ("--trainer.gradient_clip_val 1", ["set model.gradient_clip"]),
    ("--model.optimizer.base_learning_rate -1", ["model.optimizer.base_learning_rate is -1", "above 0"]),
    ("--trainer.val_check_interval 9000 --trainer.check_val_every_n_epoch 1", ["is 9000, an epoch has 375 steps"]),
    ("--runs_root /dev/null/runs", ["/dev/null/runs", "choose another path"]),
    (f"--callbacks.more.class_path {CHECKPOINTS}", ["callbacks: ", "more than one stateful callback", "keep one"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "texts"), WRONG_OPTIONS)
def test_later_mistakes_are_one_line_too(tmp_path, own_signals, capsys, options, texts):
    experiment = ["--config", "experiments/demo_tokenizer.yaml", "--runs_root", str(tmp_path / "runs")]
    assert main(["fit", *experiment, *options.split()]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert_contains(error, texts)


def test_config_prints_a_document_that_can_be_used_again(aim_cli, tmp_path):
    done = aim_cli("config", "--config", DEMO, "--model.network.d_model", "64")
    assert done.returncode == 0
    (tmp_path / "saved.yaml").write_text(done.stdout)
    assert aim_cli("config", "--config", tmp_path / "saved.yaml").stdout == done.stdout
    assert "d_model: 64" in done.stdout


@pytest.mark.slow
def test_doctor_reports_which_kernels_are_usable(aim_cli):
    done = aim_cli("doctor")
    assert done.returncode == 0
    plain = "chunked scan in plain PyTorch"
    rows = [f"torch {plain}", f"auto torch: {plain}", "triton not usable: it needs an NVIDIA GPU", "causal-conv1d "]
    assert_contains(" ".join(done.stdout.split()), [*rows, "mamba_ssm mamba-ssm is not usable ("])


def test_too_little_memory_is_one_line(fail, monkeypatch):
    monkeypatch.setattr("aim_lightning.cli.main.run", lambda argv: torch.empty(1 << 60, dtype=torch.uint8))
    assert "error: out of memory (tried to allocate 1152921504606846976 bytes); lower the batch size" in fail()


def test_a_full_disk_is_transient_and_denied_access_is_not():
    """Exit code 74 requeues a job, exit code 2 does not."""
    full, closed, other = (OSError(n, "reason", "file") for n in (errno.ENOSPC, errno.EACCES, errno.ENOENT))
    assert type(disk_mistake(full)) is TransientError
    assert "file cannot be used (reason); free disk space" in str(disk_mistake(full))
    assert type(disk_mistake(closed)) is UserError and disk_mistake(other) is None
