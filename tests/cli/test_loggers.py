"""Arguments and failures of loggers, without a server."""

import pytest
from cli.test_configs import ROOT, build
from lightning.pytorch.loggers import CSVLogger, wandb
from lightning_utilities.core.imports import RequirementCache

from aim_lightning.cli.build.loggers import connect, set_arguments
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.errors import TransientError, UserError

WANDB = {"class_path": "lightning.pytorch.loggers.WandbLogger"}
DEMO = [ROOT / "experiments" / "demo_aim.yaml", ROOT / "configs" / "logger" / "wandb.yaml"]


class CommError(Exception):
    """The error of W&B without a server."""


class Broken(CSVLogger):
    """Logger that fails to start with `fault`, or that fails later if there is none."""

    fault = None

    @property
    def experiment(self):
        if self.fault:
            raise self.fault

    def log_metrics(self, metrics, step=None):
        raise ConnectionResetError("lost")


def arguments(tmp_path, run="a", **loggers):
    set_arguments(loggers, RunDirectory("e", run, tmp_path))
    return {name: logger and logger["init_args"] for name, logger in loggers.items()}


def test_loggers_write_to_the_run_directory(tmp_path):
    paths = {name: {"class_path": f"lightning.pytorch.loggers.{name}"} for name in ("TensorBoardLogger", "CSVLogger")}
    result = arguments(tmp_path, off=None, **paths)
    save_dir = str(tmp_path / "e" / "a")
    assert result["TensorBoardLogger"] == {"save_dir": save_dir, "name": "", "version": ""}
    assert result["CSVLogger"] == {"save_dir": save_dir, "name": "csv"} and result["off"] is None


def test_a_csv_logger_works_by_its_class_path_alone(tmp_path):
    csv = ("logger.csv.class_path", "lightning.pytorch.loggers.CSVLogger")
    trainer = build(DEMO[0], csv, ("logger.tensorboard", "null"), ("runs_root", str(tmp_path))).trainer
    assert [logger.log_dir for logger in trainer.loggers] == [str(tmp_path / "demo_aim" / "main" / "csv" / "version_0")]


def test_several_loggers_in_one_configuration(tmp_path):
    pytest.importorskip("wandb")
    files = [*DEMO, ROOT / "configs" / "logger" / "csv.yaml"]
    options = {"project": "clothes", "offline": "true", "entity": "team", "tags": "[a, b]"}
    overrides = [(f"logger.wandb.{name}", value) for name, value in options.items()]
    trainer = build(files, *overrides, ("runs_root", str(tmp_path))).trainer
    loggers = {type(logger).__name__: logger for logger in trainer.loggers}
    assert set(loggers) == {"TensorBoardLogger", "WandbLogger", "CSVLogger"}
    assert loggers["WandbLogger"].name == "clothes"  # Lightning's name of the project
    passed_on = loggers["WandbLogger"]._wandb_init
    assert (passed_on["entity"], passed_on["tags"], passed_on["name"]) == ("team", ["a", "b"], "demo_aim/main")
    assert not list(tmp_path.iterdir()), "a configuration that is refused later leaves no file"


def test_every_start_of_a_run_has_the_same_wandb_id(tmp_path):
    class WandbLogger(CSVLogger):
        experiment, version = None, arguments(tmp_path, wandb=dict(WANDB))["wandb"]["id"]

    assert not list(tmp_path.iterdir())
    connect([WandbLogger(tmp_path / "files")], RunDirectory("e", "a", tmp_path))
    first, second = WandbLogger.version, arguments(tmp_path, wandb=dict(WANDB))["wandb"]["id"]
    assert first == second and arguments(tmp_path, run="b", wandb=dict(WANDB))["wandb"]["id"] != first
    assert arguments(tmp_path, wandb={**WANDB, "init_args": {"id": "mine"}})["wandb"]["id"] == "mine"
    assert "id" not in arguments(tmp_path, wandb={**WANDB, "init_args": {"version": "mine"}})["wandb"]


def test_only_rank_zero_has_an_id(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert "id" not in arguments(tmp_path, wandb=dict(WANDB))["wandb"] and not list(tmp_path.iterdir())


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb, "_WANDB_AVAILABLE", RequirementCache("wandb>=999"))
    with pytest.raises(UserError, match=r"^configuration: the package wandb>=999 .* pip install 'wandb>=999'$"):
        build(DEMO, ("runs_root", str(tmp_path)))


@pytest.mark.parametrize(
    ("fault", "error_type", "reason"),
    [
        (CommError("no route to host.\nConsider more"), TransientError, "no route to host"),
        (ConnectionRefusedError(), TransientError, "ConnectionRefusedError"),
        (ValueError("No API key configured."), UserError, "No API key configured"),
    ],
)
def test_a_logger_that_cannot_start(tmp_path, fault, error_type, reason):
    logger = Broken(tmp_path)
    logger.fault = fault
    with pytest.raises(UserError, match=rf"^logger: Broken cannot start \({reason}\); correct") as raised:
        connect([logger], RunDirectory("e", "a", tmp_path))
    assert raised.type is error_type


def test_a_later_failure_is_one_warning(tmp_path, capsys):
    logger = Broken(tmp_path)
    connect([logger], RunDirectory("e", "a", tmp_path))
    for step in range(3):
        logger.log_metrics({"loss": 1.0}, step)
    assert capsys.readouterr().err == "warning: Broken failed (ConnectionResetError: lost); training continues\n"
