"""Everything that a configuration names, built and connected."""

import copy
import inspect
import pkgutil
from collections.abc import Sequence
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

from aim_lightning.callbacks.logging.progress_bar import RunProgressBar
from aim_lightning.callbacks.logging.tensorboard import use_run_writer
from aim_lightning.callbacks.training.corrupt_records import CorruptRecords
from aim_lightning.callbacks.training.ema import EMA
from aim_lightning.callbacks.training.resume_state import ResumeState, RunCheckpointIO
from aim_lightning.cli.build.callback_resources import CallbackResources
from aim_lightning.cli.commands.config import run_directory
from aim_lightning.cli.config import Config
from aim_lightning.cli.value_ranges import STRATEGIES
from aim_lightning.cluster.options import ClusterOptions
from aim_lightning.cluster.slurm_api import Job
from aim_lightning.data.images.dataset import Images
from aim_lightning.evaluation.evaluated_model import weights_hash
from aim_lightning.metrics.features import FeatureNetwork
from aim_lightning.runs.results import hardware
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.lightning_private import log_steps_done

# Of loggers that create subdirectories: TensorBoard writes to the run directory, CSV files get one per start.
LOGGER_NAMES = {"TensorBoardLogger": {"name": "", "version": ""}, "CSVLogger": {"name": "csv"}}


class AimCLI(LightningCLI):
    """LightningCLI over one composed document; named callbacks and loggers, sections of our own."""

    def __init__(self, document: Config, guards: Sequence[Callback] = ()) -> None:
        self.document, self.guards = document, guards
        self.directory = run_directory(document)
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
        """The document with loggers pointed at the run directory."""
        values = copy.deepcopy(self.document.values)
        values.pop("tokenize", None)  # of another command
        for logger in values["logger"].values():
            if logger is not None:
                defaults = logger_defaults(logger["class_path"], str(self.directory.path))
                logger["init_args"] = defaults | (logger.get("init_args") or {})
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
            raise UserError(_one_line(error, self.document)) from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        built = self.config_init
        callbacks = [callback for callback in built["callbacks"].values() if callback is not None]
        has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        shows_bar = built["trainer"].get("enable_progress_bar") is not False
        bars = [RunProgressBar()] if shows_bar and not has_bar else []
        state = ResumeState(self.document.values["seed_everything"], self.document.values)
        options = {
            **built["trainer"],
            "callbacks": [state, CorruptRecords(), *self.guards, *callbacks, *bars],
            "logger": [logger for logger in built["logger"].values() if logger is not None] or False,
            "default_root_dir": str(self.directory.path),
            "plugins": [*(built["trainer"].get("plugins") or []), RunCheckpointIO(), *environment()],
            "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
            "use_distributed_sampler": False,  # the DataModules know rank and world themselves
        }
        self.named_callbacks = {name: cb for name, cb in built["callbacks"].items() if cb is not None}
        try:
            return self.trainer_class(**options)
        except (MisconfigurationException, ValueError) as error:
            raise UserError(f"trainer: {' '.join(str(error).split())}") from None
        except RuntimeError as error:  # two callbacks of one class cannot be told apart in a checkpoint
            if "stateful callback" not in str(error):
                raise
            raise UserError(f"callbacks: {' '.join(str(error).split())}; keep one of them") from None


def logger_defaults(class_path: str, run_dir: str) -> dict[str, str]:
    """Return constructor arguments that make a logger write to the run directory.

    Args:
        class_path: of any Lightning logger.
        run_dir: path of the run directory.
    """
    accepted = inspect.signature(pkgutil.resolve_name(class_path)).parameters
    directories = {"save_dir": run_dir} if "save_dir" in accepted else {}
    return directories | LOGGER_NAMES.get(class_path.rpartition(".")[2], {})


def environment() -> list[ClusterEnvironment]:
    """Where ranks come from, where Lightning would guess wrong.

    It takes any process inside an allocation for one that srun started, and wants to requeue the job itself.
    """
    job = Job.current()
    if job is None or TorchElasticEnvironment.detect():
        return []
    return [LightningEnvironment() if job.tasks is None else SLURMEnvironment(auto_requeue=False)]


def build(document: Config, purge_step: int | None = None, guards: Sequence[Callback] = ()) -> AimCLI:
    """Build module, data and trainer, share out the batch, hand the frozen networks to the callbacks.

    Args:
        document: from `compose`.
        purge_step: TensorBoard forgets what an earlier process logged from this step on.
        guards: callbacks that are no part of the configuration.

    Raises:
        UserError: anything that does not fit together.
    """
    cli = AimCLI(document, guards)
    _check_trainer(cli)
    plan = cli.datamodule.plan_for(cli.trainer.world_size)
    if cli.model.automatic_optimization:
        cli.trainer.accumulate_grad_batches = plan.accumulate
    cli.datamodule.setup("fit")
    if isinstance(cli.trainer.val_check_interval, int):
        _check_interval(cli)
        cli.trainer.val_check_interval *= plan.accumulate  # configured in steps, counted by Lightning in batches
    resources = CallbackResources(cli.config_init, document, cli.datamodule)
    resources.check_codes(cli.model)
    for name, callback in cli.named_callbacks.items():
        resources.provide(name, callback)
    log_steps_done(cli.trainer)
    for logger in cli.trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            use_run_writer(logger, purge_step)
    return cli


def _check_trainer(cli: AimCLI) -> None:
    """What Lightning would meet only in the middle of training."""
    trainer = cli.trainer
    strategy = trainer.strategy
    # Strategies that start processes in another way, or split the weights, do not give back a whole checkpoint.
    supported = isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) and strategy.root_device.type != "xla"
    if not supported or getattr(strategy, "_start_method", "popen") != "popen":
        name = type(strategy).__name__
        raise UserError(f"trainer.strategy {name} cannot resume at the exact step; use one of {', '.join(STRATEGIES)}")
    if trainer.gradient_clip_val is not None and not cli.model.automatic_optimization:
        raise UserError(
            "trainer.gradient_clip_val is not for a tokenizer, which has two optimizers; set model.gradient_clip"
        )
    on_gpu = trainer.strategy.root_device.type == "cuda"
    if trainer.precision.startswith("bf16") and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"trainer.precision is {trainer.precision}, which {torch.cuda.get_device_name()} computes by emulation; "
            "set trainer.precision 32-true or 16-mixed"
        )


def _check_interval(cli: AimCLI) -> None:
    interval, steps = cli.trainer.val_check_interval, cli.datamodule.batches_per_epoch
    if cli.trainer.check_val_every_n_epoch is not None and interval > steps:
        raise UserError(
            f"trainer.val_check_interval is {interval}, an epoch has {steps} steps; "
            "set trainer.check_val_every_n_epoch null to count steps across epochs"
        )


def weights_kind(cli: AimCLI) -> str:
    """Which weights validation sees: `ema` or `raw`."""
    return "ema" if any(isinstance(callback, EMA) for callback in cli.trainer.callbacks) else "raw"


def scored_weights_hash(cli: AimCLI) -> str:
    """Hex sha256 of the weights that validation sees now."""
    ema = next((callback for callback in cli.trainer.callbacks if isinstance(callback, EMA)), None)
    return weights_hash(ema.network if ema else cli.model.network)


def hardware_of(cli: AimCLI) -> str:
    """What the trainer runs on."""
    return hardware(cli.trainer.strategy.root_device, cli.trainer.world_size)


def device() -> torch.device:
    """The best device of this process."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def quiet() -> None:
    """Leave Lightning's advice for beginners out of the terminal."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*IterableDataset.*__len__.*")
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # our metrics are the same on all ranks already
    warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")  # ours starts from the cursor
    warnings.filterwarnings("ignore", ".*`srun` command is available.*")
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)


def _one_line(error: Exception, document: Config) -> str:
    text = " ".join(str(error).split())
    keys = [key for key in document.origins if key in text]
    where = document.origins[max(keys, key=len)] if keys else "configuration"
    return f"{where}: {text}"
