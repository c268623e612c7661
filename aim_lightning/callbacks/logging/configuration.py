"""The composed configuration in loggers other than TensorBoard."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger


class ConfigurationLog(Callback):
    """Log the composed configuration at every start; `TensorBoardPage` logs it to TensorBoard.

    Args:
        configuration: of the run.
    """

    def __init__(self, configuration: dict[str, Any]) -> None:
        self.configuration = configuration

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.configuration)
