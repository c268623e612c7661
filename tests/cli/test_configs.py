"""Every shipped file is composed, checked and built."""

import math
import shutil
from functools import partial

import pytest
import torch
from conftest import ROOT, python

from aim_lightning.cli.arguments import Arguments
from aim_lightning.cli.build.trainer_cli import AimCLI
from aim_lightning.cli.config import read, read_and_check
from aim_lightning.config.yaml import dump
from aim_lightning.weights.download import DOWNLOADS

CONFIGS = ROOT / "configs"
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
AIM = {"b": 147_622_080, "l": 349_760_000, "xl": 763_291_392, "1b": 1_335_944_192}


def compose_and_check(path, *overrides):
    return read_and_check(Arguments(path if isinstance(path, list) else [path], list(overrides)))


def build(files, *overrides) -> AimCLI:
    """Build everything that files name for one CPU rank, with networks on the meta device."""
    config = compose_and_check(files, ("trainer.accelerator", "cpu"), ("trainer.devices", "1"), *overrides)
    with torch.device("meta"):
        return AimCLI(config)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_is_built_on_the_meta_device(path):
    cli = build(path)
    assert cli.config["experiment"] == path.stem
    assert cli.directory.path.as_posix() == f"runs/{path.stem}/main"
    name = path.stem.rpartition("_")[2]
    if name in AIM:
        assert sum(p.numel() for p in cli.model.network.parameters()) == AIM[name]
        assert cli.model.optimizer_config.peak(cli.datamodule.global_batch_size) == pytest.approx(8e-4)
    named = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert {"Checkpoints", "RunProgressBar"} <= set(named) and named[0] == "ResumeState"
    assert [type(logger).__name__ for logger in cli.trainer.loggers] == ["TensorBoardLogger"]
    assert cli.trainer.loggers[0].log_dir.rstrip("/") == f"runs/{path.stem}/main"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_saved_configuration_composes_to_itself(path, tmp_path):
    first = compose_and_check(path)
    (tmp_path / "config.yaml").write_text(dump(first.values))
    assert compose_and_check(tmp_path / "config.yaml").values == first.values


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_component_fits_an_experiment(path):
    experiment = ROOT / "experiments" / ("demo_aim.yaml" if path.parent.name != "images" else "demo_tokenizer.yaml")
    overrides = [("data.path", "data/tokens/x")] if path.stem == "tokens" else []
    config = compose_and_check([experiment, path], *overrides)
    assert path.parent.name in config.values


OPTIONAL = [
    "callbacks/training_evaluation",
    "cluster/gpu",
    "cluster/cpu",
    "data/tokens",
    "trainer/gpu",
    "model/gpt_tiny",
    "model/gpt_4m",
    "features/dinov2",
]


@pytest.mark.parametrize("name", OPTIONAL)
def test_optional_components_are_built_too(name):
    """Those that no shipped experiment includes, or only some do."""
    cli = build([ROOT / "experiments/demo_aim.yaml", CONFIGS / f"{name}.yaml"], ("data.path", "data/tokens/x"))
    if name.startswith("callbacks"):
        assert "TrainingEvaluation" in [type(callback).__name__ for callback in cli.trainer.callbacks]
    if name.startswith("model"):
        # aim_tiny has 297,339 and fashion_mnist_aim 4,270,784.
        parameters = {"model/gpt_tiny": 302_784, "model/gpt_4m": 4_283_392}[name]
        assert sum(p.numel() for p in cli.model.network.parameters()) == parameters
    if name.startswith("cluster"):
        assert type(cli.config_init["cluster"]).__name__ == "ClusterOptions"


def test_every_component_is_built_by_some_test():
    used = {origin for path in EXPERIMENTS for origin in read(Arguments([path])).origins.values()}
    shipped = {path.relative_to(ROOT).as_posix() for path in CONFIGS.rglob("*.yaml")}
    rest = shipped - used - {f"configs/{name}.yaml" for name in OPTIONAL}
    assert rest == {f"configs/{name}.yaml" for name in ("model/vq8", "logger/csv", "logger/wandb")}  # tested elsewhere


def test_published_tokenizer_recipe():
    """What LlamaGen's tokenizer was trained with."""
    values = compose_and_check(ROOT / "experiments/imagenet256_tokenizer.yaml").values
    model, data = values["model"]["init_args"], values["data"]["init_args"]
    loss, adversarial, optimizer = model["loss"], model["adversarial"], model["optimizer"]
    assert (data["global_batch_size"], data["train_crop"], data["flip"]) == (128, "adm_random", True)
    assert (values["trainer"]["max_epochs"], values["trainer"]["precision"]) == (40, "bf16-mixed")
    assert math.isclose(optimizer["base_learning_rate"] * 128 / 256, 1e-4) and optimizer["betas"] == [0.9, 0.95]
    assert (optimizer["weight_decay"], optimizer["schedule"], optimizer.get("warmup_steps", 0)) == (0, "constant", 0)
    weights = [loss[f"{name}_weight"] for name in ("reconstruction", "perceptual", "codebook", "commitment", "entropy")]
    assert loss["reconstruction"] == "l2" and weights == [1, 1, 1, 0.25, 0]
    assert adversarial.pop("discriminator") == {"num_layers": 3, "channels": 64}
    expected = {"loss": "hinge", "weight": 0.5, "start_step": 20000, "adaptive": False, "gradient_clip": 1.0}
    assert adversarial == expected
    assert model["gradient_clip"] == 1.0 and values["callbacks"]["ema"] is None


def test_vq8_preset():
    cli = build([ROOT / "experiments/imagenet256_tokenizer.yaml", CONFIGS / "model/vq8.yaml"])
    assert sum(p.numel() for p in cli.model.network.parameters()) == 70_109_835
    assert cli.model.network.grid == (32, 32)


def test_paper_recipe():
    for name, epochs in (("b", 300), ("l", 300), ("xl", 350), ("1b", 350)):
        values = compose_and_check(ROOT / f"experiments/imagenet256_aim_{name}.yaml").values
        model, data = values["model"]["init_args"], values["data"]["init_args"]
        facts = (values["trainer"]["max_epochs"], data["global_batch_size"], model["label_dropout"])
        assert facts == (epochs, 2048, 0.1)
        optimizer = model["optimizer"]
        assert optimizer["betas"] == [0.9, 0.95] and optimizer["weight_decay"] == 0.05
        assert values["trainer"]["precision"] == "bf16-mixed" and math.isclose(optimizer["base_learning_rate"], 1e-4)


def test_finetuning_starts_from_the_weights_that_make_weights_vq_downloads():
    config = compose_and_check(ROOT / "experiments" / "imagenet256_tokenizer_finetune.yaml")
    published = DOWNLOADS["VQ-16"]
    path = f"{published.path}/{published.files[0]}"
    assert config.values["model"]["init_args"]["init_from"] == path


@pytest.mark.long
def test_a_wheel_contains_the_shipped_configurations(tmp_path):
    """The console script of a wheel works in any directory; includes of files that it ships resolve."""
    ignored = shutil.ignore_patterns("__pycache__", "results", "sweeps")
    for name in ("aim_lightning", "configs", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "source")
    pip = partial(python, "-m", "pip", "--disable-pip-version-check")
    built = pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, tmp_path / "source")
    assert built.returncode == 0, built.stderr
    assert pip("install", "--no-deps", "--target", tmp_path / "site", *tmp_path.glob("*.whl")).returncode == 0
    (tmp_path / "mine.yaml").write_text("include: [pkg:demo_aim, pkg:model/aim_tiny]\nexperiment: mine\n")

    call = partial(python, "-P", "-m", "aim_lightning", cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))

    assert "usage: aim-lightning" in call("--help").stdout
    assert "experiment: mine\n" in call("config", "--config", "mine.yaml", "--config", "pkg:cluster/cpu").stdout
    for words, error in (
        (["config", "--config", "pkg:demo"], "pkg:demo: there is no such file; use pkg: with one of demo_aim,"),
        (["table"], "experiments/results does not exist; run this in the root of a checkout"),
        (["dataset", "mine", "name"], "run this in the root of a checkout"),
    ):
        done = call(*words)
        assert done.returncode == 2 and error in done.stderr and done.stderr.count("\n") == 1
