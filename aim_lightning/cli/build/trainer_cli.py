"""Build and connect everything that a configuration names: module, data, callbacks, loggers and trainer."""

import copy
import logging
import re
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jsonargparse import ArgumentError
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from aim_lightning.callbacks.find_callback import find_callback
from aim_lightning.callbacks.logging.progress_bar import RunProgressBar
from aim_lightning.callbacks.logging.tensorboard_writer import RunWriter
from aim_lightning.callbacks.training.ema import EMA
from aim_lightning.callbacks.training.resume_state import CorruptRecords, ResumeState, RunCheckpointIO
from aim_lightning.cli.build.callback_resources import CallbackResources
from aim_lightning.cli.build.loggers import set_arguments
from aim_lightning.cli.build.micro_batch import automatic_micro_batch
from aim_lightning.cli.config import Config
from aim_lightning.cli.value_ranges import STRATEGIES
from aim_lightning.cluster.options import ClusterOptions
from aim_lightning.cluster.slurm_api import Job
from aim_lightning.data.images.dataset import Images
from aim_lightning.metrics.features import FeatureNetwork
from aim_lightning.runs.results import hardware
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.lightning_private import log_steps_done, set_writer
from aim_lightning.utils.logging import show_log
from aim_lightning.utils.tensor_hash import hash_tensors

# Advice of Lightning for beginners. Metrics are the same on all ranks here, the data resumes from its cursor, and steps
# are logged across short epochs.
IGNORED_WARNINGS = (
    "does not have many workers|IterableDataset.*__len__|sync_dist=True|your dataloader is not resumable"
    "|`srun` command is available|treespec, LeafSpec|smaller than the logging interval"
)


class AimCLI(LightningCLI):
    """LightningCLI over one composed configuration, with named callbacks and loggers and the sections of this package.

    Args:
        composed: from `compose`.
        guards: callbacks that are no part of the configuration.

    Raises:
        UserError: a class or an option does not fit.
    """

    def __init__(self, composed: Config, guards: Sequence[Callback] = ()) -> None:
        self.composed = composed
        self.notes: list[str] = []  # for the log and the history of the run
        self.guards = guards
        self.directory = composed.run_directory
        self.resume_state = ResumeState(composed.values["seed_everything"], composed.values)
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            auto_configure_optimizers=False,
            run=False,
            args=self._arguments(),
            parser_kwargs={"exit_on_error": False},
        )

    def _arguments(self) -> dict[str, Any]:
        """Return the configuration with loggers that write to the run directory."""
        values = copy.deepcopy(self.composed.values)
        values.pop("tokenize", None)  # of another command
        set_arguments(values["logger"], self.directory)
        return values

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name in ("experiment", "run", "runs_root"):
            parser.add_argument(f"--{name}", type=str)
        parser.add_argument("--tokenizer", type=str | dict | None)
        parser.add_argument("--images", type=Images | None)
        parser.add_argument("--features", type=FeatureNetwork | None)
        parser.add_argument("--sampling", type=SamplingOptions, default=SamplingOptions())
        parser.add_argument("--cluster", type=ClusterOptions, default=ClusterOptions())
        parser.add_argument("--callbacks", type=dict[str, Callback | None])
        parser.add_argument("--logger", type=dict[str, Logger | None])

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_object(args)
        except ArgumentError as error:
            text = " ".join(str(error).split())
            keys = [key for key in self.composed.origins if key in text]
            origin = self.composed.origins[max(keys, key=len)] if keys else "configuration"
            raise UserError(f"{origin}: {text}") from None

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # jsonargparse's; the words are Lightning's
            if missing := re.search(r"Requirement '(.+?)' not met", str(error)):
                fault = f"the package {missing[1]} of a configured class is missing; pip install '{missing[1]}'"
                raise UserError(f"configuration: {fault}") from None
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        built, options = self.config_init, self.config_init["trainer"]
        self.named_callbacks = {name: callback for name, callback in built["callbacks"].items() if callback is not None}
        callbacks = list(self.named_callbacks.values())
        has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        shows_bar = options.get("enable_progress_bar") is not False
        bars = [RunProgressBar()] if shows_bar and not has_bar else []
        options = {
            **options,
            "enable_progress_bar": has_bar and shows_bar,  # Lightning's bar; `RunProgressBar` is a plain callback
            "callbacks": [self.resume_state, CorruptRecords(), *self.guards, *callbacks, *bars],
            "logger": [logger for logger in built["logger"].values() if logger is not None] or False,
            "default_root_dir": str(self.directory.path),
            "plugins": [*(options.get("plugins") or []), RunCheckpointIO(), *environment()],
            "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
            "use_distributed_sampler": False,  # the DataModules know rank and world themselves
        }
        try:
            return self.trainer_class(**options)
        except (MisconfigurationException, TypeError, ValueError, ImportError) as error:
            raise UserError(f"trainer: {' '.join(str(error).split())}") from None
        except RuntimeError as error:  # two callbacks of one class cannot be told apart in a checkpoint
            if "stateful callback" not in str(error):
                raise
            raise UserError(f"callbacks: {' '.join(str(error).split())}; keep one of them") from None


def environment() -> list[ClusterEnvironment]:
    """Return the source of ranks where Lightning would choose the wrong one, as a list of Trainer plugins.

    Lightning takes any process inside an allocation for one that srun started, and would requeue the job itself.
    """
    job = Job.current()
    if job is None or TorchElasticEnvironment.detect():
        return []
    return [LightningEnvironment() if job.tasks is None else SLURMEnvironment(auto_requeue=False)]


def build(
    config: Config, purge_step: int | None = None, guards: Sequence[Callback] = (), micro_batch_size: int | None = None
) -> AimCLI:
    """Build module, data and trainer, split the batch over ranks, and give the frozen networks to the callbacks.

    Args:
        config: from `compose`.
        purge_step: TensorBoard ignores what an earlier process logged from this step on.
        guards: callbacks that are no part of the configuration.
        micro_batch_size: of the run so far, which `data.max_device_batch_size: auto` keeps.

    Raises:
        UserError: parts of the configuration do not fit together.
    """
    cli = AimCLI(config, guards)
    trainer, data = cli.trainer, cli.datamodule
    _check_trainer(cli)
    plan = data.plan_for(trainer.world_size)
    if data.max_device_batch_size == "auto":
        device = trainer.strategy.root_device
        data.max_device_batch_size, note = automatic_micro_batch(
            cli.model, trainer.precision, device, plan.micro_batch_size, micro_batch_size
        )
        cli.notes.append(note)
        plan = data.plan_for(trainer.world_size)
    if cli.model.automatic_optimization:
        trainer.accumulate_grad_batches = plan.accumulate
    data.setup("fit")
    if isinstance(interval := trainer.val_check_interval, int):
        if trainer.check_val_every_n_epoch is not None and interval > data.batches_per_epoch:
            raise UserError(
                f"trainer.val_check_interval is {interval}, an epoch has {data.batches_per_epoch} steps; "
                "set trainer.check_val_every_n_epoch null to count steps across epochs"
            )
        trainer.val_check_interval *= plan.accumulate  # configured in steps, counted by Lightning in batches
    resources = CallbackResources(cli.config_init, config, data)
    resources.check_codes(cli.model)
    for name, callback in cli.named_callbacks.items():
        resources.provide(name, callback)
    log_steps_done(trainer)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            # This writer survives a full disk.
            set_writer(logger, partial(RunWriter, purge_step=purge_step))
    return cli


def _check_trainer(cli: AimCLI) -> None:
    """Raise UserError for what Lightning would report only in the middle of training."""
    trainer, strategy = cli.trainer, cli.trainer.strategy
    # Strategies that start processes in another way, or split the weights, do not give back a whole checkpoint.
    supported = isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) and strategy.root_device.type != "xla"
    if not supported or getattr(strategy, "_start_method", "popen") != "popen":
        name = type(strategy).__name__
        raise UserError(f"trainer.strategy {name} cannot resume at the exact step; use one of {', '.join(STRATEGIES)}")
    if trainer.gradient_clip_val is not None and not cli.model.automatic_optimization:
        raise UserError(
            "trainer.gradient_clip_val is not for a tokenizer, which has two optimizers; set model.gradient_clip"
        )
    ema = next((name for name, callback in cli.named_callbacks.items() if isinstance(callback, EMA)), None)
    if ema and trainer.precision.endswith("-true") and trainer.precision != "32-true":
        raise UserError(
            f"trainer.precision is {trainer.precision}, whose weights callbacks.{ema} cannot average; "
            "set trainer.precision 32-true, bf16-mixed or 16-mixed"
        )
    emulated = strategy.root_device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if trainer.precision.startswith("bf16") and emulated:
        raise UserError(
            f"trainer.precision is {trainer.precision}, which {torch.cuda.get_device_name()} computes by emulation; "
            "set trainer.precision 32-true or 16-mixed"
        )


def scored_weights(cli: AimCLI) -> dict[str, str]:
    """Return the kind (`ema` or `raw`) and the hex sha256 of the weights that validation scores."""
    ema = find_callback(cli.trainer, EMA)
    network = ema.network if ema else cli.model.network
    return {"weights": "ema" if ema else "raw", "weights_sha256": hash_tensors(network.state_dict())}


def hardware_of(cli: AimCLI) -> str:
    """Describe the devices of the trainer."""
    return hardware(cli.trainer.strategy.root_device, cli.trainer.world_size)


def quiet() -> None:
    """Suppress Lightning's advice for beginners."""
    show_log()  # Lightning replaces the format of warnings when it is imported
    warnings.filterwarnings("ignore", f".*({IGNORED_WARNINGS})")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
