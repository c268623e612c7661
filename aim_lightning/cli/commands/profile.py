"""`aim-lightning profile`: trace a few training steps and list their most expensive kernels."""

import argparse
import csv
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aim_lightning.cli.common_options import number, option
from aim_lightning.cli.config import Config
from aim_lightning.utils.files import make_directory, writing

if TYPE_CHECKING:
    from torch.profiler import profile

HELP = "trace ten training steps for Perfetto and TensorBoard, and list the most expensive kernels"
WARM_UP = 5  # steps that compile, tune and allocate
LISTED = 20
Table = list[tuple[str, float, float, float]]
COLUMNS = ("name", "launches_per_step", "milliseconds_per_step", "share")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the option --steps."""
    parser.add_argument("--steps", **option("steps to trace", 10, type=number(int, 1)))


def run(config: Config, options: argparse.Namespace) -> int:
    """Trace steps of one micro-batch on one device, write trace and table, print the table and return 0."""
    import torch
    from lightning.pytorch.callbacks import LambdaCallback
    from torch.profiler import profile, schedule, tensorboard_trace_handler

    from aim_lightning.cli.build.trainer_cli import quiet
    from aim_lightning.cli.plan.benchmark import train_briefly
    from aim_lightning.cli.plan.report import batch_plan, lacks_codes, meta_module

    quiet()
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # torch's tracer reports a missing GPU as an error
    batch, simulate = batch_plan(config, meta_module(config))[0], lacks_codes(config)
    rows = batch.micro_batch_size
    directory, times = config.run_directory.path / "profile", []
    steps = schedule(wait=0, warmup=WARM_UP, active=options.steps, repeat=1)
    make_directory(directory)  # the handler's own error is no OSError, and follows all steps
    write_trace = writing(directory)(tensorboard_trace_handler(str(directory), use_gzip=True))
    tracer = profile(schedule=steps, on_trace_ready=write_trace)

    def on_train_batch_end(trainer, module, outputs, batch, batch_idx: int) -> None:
        if module.device.type == "cuda" and len(times) + 1 in (WARM_UP, WARM_UP + options.steps):
            torch.cuda.synchronize()  # the last kernels of the step are still running
        times.append(time.perf_counter())
        tracer.step()

    with tracer:
        callback = LambdaCallback(on_train_batch_end=on_train_batch_end)
        cli = train_briefly(config, batch, WARM_UP + options.steps, simulate, callback)
    device = cli.trainer.strategy.root_device
    table, total = kernel_table(tracer, options.steps, device.type)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    wall = 1000 * (times[-1] - times[WARM_UP - 1]) / options.steps
    data = ", random codes" if simulate else ""
    print(f"profile of {config.run_directory.path}: {options.steps} steps of {rows} images on one {name}{data}")
    print(f"{wall:.1f} ms per step with the profiler, {total:.1f} ms in kernels; the {len(table)} most expensive:")
    with writing(directory):
        _write(table, directory)
    return 0


def _write(table: Table, directory: Path) -> None:
    """Print the table, write it next to the trace, and print where both are."""
    path = directory / "kernels.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *table])
    print(f"  {'ms per step':>11s}  {'share':>6s}  {'launches':>8s}  name")
    for name, launches, milliseconds, share in table:
        print(f"  {milliseconds:11.3f}  {share:6.1%}  {launches:8.1f}  {name[:90]}")
    trace = max(directory.glob("*.pt.trace.json.gz"), key=lambda file: file.stat().st_mtime)
    print(f"trace: {trace} (open it at https://ui.perfetto.dev)\ntable: {path}")


def kernel_table(tracer: "profile", steps: int, device_type: str, limit: int | None = LISTED) -> tuple[Table, float]:
    """Return name, launches and milliseconds per step and share of the most expensive kernels, and the total.

    Args:
        tracer: a profiler that has finished.
        steps: traced steps.
        device_type: ``cuda`` for kernels; ``cpu`` for operators, without the time of those that they call.
        limit: rows of the table; None for all.
    """
    attribute = f"self_{'device' if device_type == 'cuda' else 'cpu'}_time_total"
    events = [
        event
        for event in tracer.key_averages()
        if event.device_type.name.lower() == device_type and not event.is_user_annotation
    ]
    events.sort(key=lambda event: getattr(event, attribute), reverse=True)
    total = sum(getattr(event, attribute) for event in events) or 1
    table = [
        (event.key, event.count / steps, getattr(event, attribute) / 1000 / steps, getattr(event, attribute) / total)
        for event in events[:limit]
    ]
    return table, total / 1000 / steps
