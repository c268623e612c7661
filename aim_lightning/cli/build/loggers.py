"""Loggers of a run: where they write, the W&B run that a continued training belongs to, and their failures."""

import functools
import inspect
import pkgutil
import secrets
from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.errors import TransientError, UserError, first_line
from aim_lightning.utils.files import write_text
from aim_lightning.utils.logging import warn_once
from aim_lightning.utils.process import is_rank_zero

# Of loggers that create subdirectories: TensorBoard writes to the run directory, CSV files get one per start.
NAMES = {"TensorBoardLogger": {"name": "", "version": ""}, "CSVLogger": {"name": "csv"}}
WANDB_ID = "wandb_id.txt"


def set_arguments(loggers: dict[str, dict[str, Any] | None], directory: RunDirectory) -> None:
    """Set the arguments that loggers of one run share, unless the configuration sets them.

    Args:
        loggers: section `logger` of the configuration; changed in place.
        directory: of the run.
    """
    for logger in filter(None, loggers.values()):
        class_name = logger["class_path"].rpartition(".")[2]
        accepted = inspect.signature(pkgutil.resolve_name(logger["class_path"])).parameters
        defaults = {"save_dir": str(directory.path)} if "save_dir" in accepted else {}
        defaults |= NAMES.get(class_name, {})
        options = logger.get("init_args") or {}
        # `version` is Lightning's other name of the id. Only rank 0 connects to W&B.
        if class_name == "WandbLogger" and is_rank_zero() and not {"id", "version"} & options.keys():
            defaults["id"] = wandb_id(directory)
        logger["init_args"] = defaults | options


def wandb_id(directory: RunDirectory) -> str:
    """Return the id of the run on W&B, which `connect` keeps in a file over requeues and continuations."""
    # Random instead of derived from the names: equal names in one project would share a run.
    path = directory.path / WANDB_ID
    return path.read_text(encoding="utf-8").strip() if path.is_file() else secrets.token_hex(4)


def connect(loggers: list[Logger], directory: RunDirectory, configuration: dict[str, Any] | None = None) -> None:
    """Start the loggers, log the configuration, store the id of the run on W&B, and make later failures warnings.

    A SIGTERM to all processes of a job also ends W&B's service. The training must still write its checkpoint.

    Args:
        loggers: of the trainer; changed in place.
        directory: of the run.
        configuration: composed; logged except to TensorBoard, where `TensorBoardPage` logs it. None = log nothing.

    Raises:
        UserError: a logger cannot start, for example without an account.
        TransientError: its server does not answer.
    """
    for logger in loggers:
        name = type(logger).__name__
        try:
            getattr(logger, "experiment", None)  # the connection, of loggers that have one
        except Exception as error:
            # CommError is W&B's.
            is_transient = isinstance(error, ConnectionError | TimeoutError) or type(error).__name__ == "CommError"
            fault = TransientError if is_transient else UserError
            reason = first_line(error).rstrip(".")
            raise fault(f"logger: {name} cannot start ({reason}); correct its options or switch it off") from error
        if name == "WandbLogger" and is_rank_zero():  # only now: a start that failed leaves no file
            write_text(directory.path / WANDB_ID, f"{logger.version}\n")
        for method in ("log_metrics", "log_hyperparams", "log_image", "save", "finalize"):
            if hasattr(logger, method):
                setattr(logger, method, _tolerant(getattr(logger, method), name))
        if configuration is not None and not isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(configuration)


def _tolerant(method: Callable[..., Any], logger_name: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **options: Any) -> Any:
        try:
            return method(*args, **options)
        except Exception as error:
            warn_once(f"{logger_name} failed ({type(error).__name__}: {error}); training continues")

    return call
