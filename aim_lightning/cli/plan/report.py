"""Make the lines that `aim-lightning plan` prints: pairs (name, text)."""

import math
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule

from aim_lightning.cli.build.micro_batch import automatic_micro_batch
from aim_lightning.cli.config import Config
from aim_lightning.cli.plan.benchmark import Measurement, checkpoint_seconds, measure
from aim_lightning.cli.plan.rates import GPU, stored_rates
from aim_lightning.cluster.job_plan import requeue_window
from aim_lightning.cluster.job_registry import read_timings
from aim_lightning.data.images.dataset import Images
from aim_lightning.data.stream import BatchPlan
from aim_lightning.data.tokens.format.manifest import TokenManifest, is_remote
from aim_lightning.runs.resume_policy import max_seconds
from aim_lightning.runs.training_estimate import Training, shard_bytes
from aim_lightning.utils.errors import UserError

Lines = list[tuple[str, str]]
BYTES, SECONDS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")), ((3600, "h"), (60, "min"), (1, "s"))


def plan_lines(config: Config, options: Namespace) -> Lines:
    """Estimate a training from its configuration and a few measured steps.

    Args:
        config: of the training.
        options: of the command.

    Raises:
        UserError: the number of images or the end of the training is unknown.
    """
    plan = estimate(config, options)
    training = plan.training
    memory = ("memory per device", _memory(training, plan.measured))
    lines = [*_size_lines(training, plan.batch), _end_line(plan), *plan.notes, memory]
    lines += _time_lines(training, plan.rates)
    lines += _disk_lines(training, plan.module.network, _token_manifest(config), options.views)
    return [*lines, ("requeue window", _window(config, training, plan.rate))]


@dataclass(frozen=True)
class Estimate:
    """The estimated training of a configuration.

    Args:
        training: its sizes.
        module: on the meta device.
        batch: division of the global batch.
        notes: lines about it.
        measured: result of the measured steps; None without them.
        rates: images/s over all devices and their source by kind of GPU.
    """

    training: Training
    module: LightningModule
    batch: BatchPlan
    notes: Lines
    measured: Measurement | None
    rates: dict[str, tuple[float, str]]

    @property
    def rate(self) -> float | None:
        """Return the images/s of the slowest kind of GPU, for which times are longest; None if it is unknown."""
        return min((rate for rate, _ in self.rates.values()), default=None)


def estimate(config: Config, options: Namespace) -> Estimate:
    """Estimate sizes and speed of a training from its configuration and a few measured steps.

    Args:
        config: of the training.
        options: of the command `plan`.

    Raises:
        UserError: the number of images or the end of the training is unknown.
    """
    tokens, module = _token_manifest(config), meta_module(config)
    batch, notes = batch_plan(config, module, options.devices)
    training = _training(config, module, batch, options.rows or (tokens.rows if tokens else _num_images(config)))
    gpu_is_missing = config.trainer.get("accelerator") in GPU and not torch.cuda.is_available()
    measured = None
    if options.steps and not options.images_per_s and not gpu_is_missing:
        measured = measure(config, batch, options.steps, lacks_codes(config))
    if options.images_per_s:
        rates = {"": (options.images_per_s, "given")}
    elif measured:
        speed = measured.rows / measured.seconds
        rates = {"": (speed * batch.world_size, f"{speed:,.1f} measured on one {measured.device}")}
    else:
        rates = stored_rates(config, module.network, batch)
    return Estimate(training, module, batch, notes, measured, rates)


def batch_plan(config: Config, module: LightningModule, devices: int | None = None) -> tuple[BatchPlan, Lines]:
    """Return the division of the global batch, and a line about a micro-batch that was chosen by memory.

    Args:
        config: of the training.
        module: result of `meta_module`.
        devices: total number; None = as configured.
    """
    data, trainer = config.init_args("data"), config.trainer
    devices = devices or _devices(trainer)
    size, limit = data.get("global_batch_size", 256), data.get("max_device_batch_size")
    plan = BatchPlan.make(size, devices, limit)
    if limit != "auto":
        return plan, []
    accelerator = trainer.get("accelerator", "auto")
    on_gpu = accelerator in GPU or (accelerator == "auto" and torch.cuda.is_available())
    device, precision = torch.device("cuda" if on_gpu else "cpu"), trainer.get("precision") or "32-true"
    limit, note = automatic_micro_batch(module, precision, device, plan.micro_batch_size)
    return BatchPlan.make(size, devices, limit), [tuple(note.split(": ", 1))]


def _token_manifest(config: Config) -> TokenManifest | None:
    """Return the manifest of the token shards if they are on a disk already."""
    path = config.init_args("data").get("path")
    on_disk = path and not is_remote(path) and (Path(path) / "train" / "manifest.json").exists()
    return TokenManifest.load(Path(path) / "train") if on_disk else None


def lacks_codes(config: Config) -> bool:
    """Return True if the training reads token shards that are not on a disk yet."""
    return config.class_name("data") == "TokenDataModule" and _token_manifest(config) is None


def _devices(trainer: dict) -> int:
    devices = trainer.get("devices", "auto")
    if isinstance(devices, str) and "," in devices:  # the numbers of GPUs, as Lightning reads them
        devices = [word for word in devices.split(",") if word.strip()]
    if isinstance(devices, list):
        per_node = len(devices)
    elif devices in ("auto", -1, "-1"):
        per_node = max(torch.cuda.device_count(), 1)
    else:
        per_node = int(devices) if str(devices).isdecimal() else 0
    if per_node < 1:
        raise UserError(f"trainer.devices is {devices}; give the number of devices, or auto")
    return per_node * trainer.get("num_nodes", 1)


def _num_images(config: Config) -> int:
    images = config.values.get("images") or {}
    if not images.get("train") or not Path(images["train"]).is_dir():
        raise UserError("plan: the number of training images is unknown without data; give --rows NUMBER")
    return len(Images(**images).open("train"))


def meta_module(config: Config) -> LightningModule:
    """Return the configured module without memory for its weights."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    with torch.device("meta"):
        return parser.instantiate_classes(parser.parse_object({"model": config.values["model"]})).model


def _training(config: Config, module: LightningModule, batch: BatchPlan, rows: int) -> Training:
    trainer, callbacks = config.trainer, {name: item for name, item in config.values["callbacks"].items() if item}
    policy = callbacks.get("checkpoints", {}).get("init_args") or {}
    epoch_steps = (trainer.get("max_epochs") or -1) * batch.batches_per_epoch(rows)
    ends = [steps for steps in (trainer.get("max_steps") or -1, epoch_steps) if steps >= 0]
    steps, seconds = min(ends, default=math.inf), max_seconds(trainer)
    if math.isinf(min(steps, seconds)):
        raise UserError("the training has no end: set trainer.max_steps, trainer.max_epochs or trainer.max_time")
    evaluations = [item for item in callbacks.values() if item["class_path"].endswith("TrainingEvaluation")]
    kept_by_evaluation = sum((item.get("init_args") or {}).get("keep_best", 1) for item in evaluations)
    return Training(
        trained=sum(p.numel() for p in module.parameters() if p.requires_grad),
        averaged=sum(p.numel() for p in module.network.parameters()) if "ema" in callbacks else 0,
        rows=rows,
        global_batch_size=batch.global_batch_size,
        devices=batch.world_size,
        steps=steps,
        kept_checkpoints=policy.get("keep_last", 2) + policy.get("keep_best", 0) + kept_by_evaluation,
        every_n_steps=policy.get("every_n_steps", 1000),
        every_n_minutes=policy.get("every_n_minutes"),
        max_seconds=seconds,
    )


def _size_lines(training: Training, batch: BatchPlan) -> Lines:
    product = f"{batch.world_size} devices x {batch.micro_batch_size} images x {batch.accumulate} accumulation steps"
    return [
        ("parameters", f"{training.trained:,} trained"),
        ("global batch", f"{batch.global_batch_size:,} = {product}"),
    ]


def _end_line(plan: Estimate) -> tuple[str, str]:
    """Describe the steps of the training, or the time limit that ends it first."""
    training = plan.training
    epochs = training.steps / plan.batch.batches_per_epoch(training.rows)
    steps = f"{training.steps:,} ({epochs:.1f} epochs of {training.rows:,} images)"
    if not training.remaining(plan.rate)[1]:
        return "steps", steps
    other = "" if math.isinf(training.steps) else f" {'before' if plan.rate else 'or'} step {steps}"
    return "time limit", f"{_scaled(training.max_seconds, SECONDS, 1)} of trainer.max_time{other}"


def _memory(training: Training, measured: Measurement | None) -> str:
    state = f"{training.state_bytes / 2**30:.2f} GiB for weights, gradients, AdamW and average"
    if measured is None:
        return f"{state}; activations are added to it (not measured)"
    scope = "of the whole process" if measured.device == "CPU" else "at the peak"
    return f"{measured.peak_bytes / 2**30:.2f} GiB {scope}, measured; {state}"


def _time_lines(training: Training, rates: dict[str, tuple[float, str]]) -> Lines:
    """Describe speed and time for each kind of GPU; the kind "" has no name in the lines."""
    lines = []
    for gpu, (rate, source) in rates.items():
        suffix = f", {gpu}" if gpu else ""
        if training.devices > 1 and source != "given":
            source += f", times {training.devices}, without communication between them"
        hours, by_time = training.remaining(rate)
        seconds = 3600 * hours
        total = f"{_scaled(seconds * training.devices, SECONDS, 1)} over all devices"
        most = f"with validation, at most {seconds / training.step_seconds(rate):,.0f} steps"
        duration = f"{_scaled(seconds, SECONDS, 1)} {most if by_time else 'without validation'}; {total}"
        lines += [("images/s" + suffix, f"{rate:,.1f} ({source})"), ("time" + suffix, duration)]
    return lines or [("images/s", "unknown: give --images_per_s, or run this where the devices are")]


def _disk_lines(training: Training, network: torch.nn.Module, tokens: TokenManifest | None, views: int) -> Lines:
    grid = getattr(network, "grid", None)  # of a tokenizer
    length = tokens.num_tokens if tokens else grid[0] * grid[1] if grid else network.config.num_tokens
    views = tokens.views if tokens else views
    size = _scaled(shard_bytes(training.rows, views, length), BYTES, 2)
    shards = f"{size} ({training.rows:,} images x {views} view(s) x {length} codes of 16 bits)"
    per_checkpoint = _scaled(training.checkpoint_bytes, BYTES, 2)
    kept = f"{training.kept_checkpoints} kept and one being written, {per_checkpoint} each"
    return [("token shards", shards), ("checkpoints", f"{_scaled(training.checkpoints_bytes, BYTES, 2)}: {kept}")]


def _scaled(value: float, units: tuple[tuple[float, str], ...], digits: int) -> str:
    unit, name = next((pair for pair in units if value >= pair[0]), units[-1])
    return f"{value / unit:,.{digits}f} {name}"


def _window(config: Config, training: Training, rate: float | None) -> str:
    """Describe when SLURM must send the signal, and the time lost at a kill without a signal."""
    timings, lead = read_timings(config.run_directory.path), config.cluster.signal_lead
    save, source = timings.get("checkpoint_seconds"), "measured in this run"
    if save is None:
        save, source = checkpoint_seconds(Path(config.values["runs_root"]), training.checkpoint_bytes)
    expected = training.step_seconds(rate) if rate else None
    pause, step = timings.get("longest_pause_seconds", expected), timings.get("step_seconds", expected)
    if pause is None:
        return f"{save:.1f} s for a checkpoint ({source}), and a batch whose time is unknown"
    step = (step or 0.0) if training.devices > 1 else 0.0
    agreement = f", {step:.1f} s for a step until all ranks agree" if step else ""
    needs = f"{save:.1f} s for a checkpoint ({source}), {pause:.1f} s to a boundary{agreement}, x 1.5"
    window = requeue_window(save, pause, step)
    enough = "enough" if lead >= window else "TOO SHORT"
    text = f"warn {window:.0f} s before the limit: {needs} (cluster.signal_lead {lead} s: {enough})"
    if rate:
        text += f"; a kill without warning takes back {_scaled(training.lost_seconds(rate), SECONDS, 1)} at most"
    return text
