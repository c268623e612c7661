"""The lines that `aim-lightning plan` prints: (name, text)."""

import torch

from aim_lightning.cli.plan.benchmark import Measured
from aim_lightning.data.stream import BatchPlan
from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.runs.training_estimate import Training, requeue_window, shard_bytes

Lines = list[tuple[str, str]]


def size_lines(training: Training, batch: BatchPlan) -> Lines:
    epochs = training.steps / batch.batches_per_epoch(training.rows)
    shares = f"{batch.world_size} devices x {batch.micro_batch_size} images x {batch.accumulate} accumulation steps"
    return [
        ("parameters", f"{training.trained:,} trained"),
        ("global batch", f"{batch.global_batch_size:,} = {shares}"),
        ("steps", f"{training.steps:,} ({epochs:.1f} epochs of {training.rows:,} images)"),
    ]


def memory_lines(training: Training, measured: Measured | None) -> Lines:
    state = f"{training.state_bytes / 2**30:.2f} GiB for weights, gradients, AdamW and average"
    if measured is None:
        return [("memory a device", f"{state}; activations come on top (not measured)")]
    what = "of the whole process" if measured.device == "CPU" else "at the peak"
    return [("memory a device", f"{measured.peak_bytes / 2**30:.2f} GiB {what}, measured; {state}")]


def time_lines(training: Training, rate: float | None, measured: Measured | None) -> Lines:
    if rate is None:
        return [("images/s", "unknown: give --images_per_s, or run this where the devices are")]
    how = "given"
    if measured:
        how = f"{rate / training.devices:,.1f} measured on one {measured.device}"
        how += f", times {training.devices} (nothing taken off for their talking)" if training.devices > 1 else ""
    seconds = 3600 * training.hours(rate)
    total = f"{_duration(seconds * training.devices)} over all devices (GPU hours, on GPUs)"
    return [("images/s", f"{rate:,.1f} ({how})"), ("time", f"{_duration(seconds)} without validation; {total}")]


def disk_lines(training: Training, network: torch.nn.Module, tokens: TokenManifest | None, views: int) -> Lines:
    views, length = (tokens.views, tokens.num_tokens) if tokens else (views, _num_tokens(network))
    size = _bytes(shard_bytes(training.rows, views, length))
    shards = f"{size} ({training.rows:,} images x {views} view(s) x {length} codes of 16 bits)"
    kept = f"{training.kept_checkpoints} kept and one being written, {_bytes(training.checkpoint_bytes)} each"
    return [("token shards", shards), ("checkpoints", f"{_bytes(training.checkpoints_bytes)}: {kept}")]


def _num_tokens(network: torch.nn.Module) -> int:
    """Codes an image, of an AiM or a tokenizer."""
    if hasattr(network, "grid"):
        return network.grid[0] * network.grid[1]
    return network.config.num_tokens


def _bytes(size: float) -> str:
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= u or n == "kB")
    return f"{size / unit:,.2f} {name}"


def _duration(seconds: float) -> str:
    unit, name = next((u, n) for u, n in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= u or n == "s")
    return f"{seconds / unit:,.1f} {name}"


def window_lines(
    training: Training, rate: float | None, lead: int, save: float, how: str, pause: float | None, step: float
) -> Lines:
    """When SLURM must warn, and what a kill without warning costs."""
    if pause is None:
        return [("requeue window", f"{save:.1f} s for a checkpoint ({how}), and a batch whose time is unknown")]
    more = f", {step:.1f} s for a step until all ranks know" if step else ""
    needs = f"{save:.1f} s for a checkpoint ({how}), {pause:.1f} s to a boundary{more}, x 1.5"
    window = requeue_window(save, pause, step)
    enough = "enough" if lead >= window else "TOO SHORT"
    text = f"warn {window:.0f} s before the limit: {needs} (cluster.signal_lead {lead} s: {enough})"
    if rate:
        text += f"; a kill without warning takes back {_duration(training.lost_seconds(rate))} at most"
    return [("requeue window", text)]
