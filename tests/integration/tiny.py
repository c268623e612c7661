"""Experiments that are small enough to be trained many times, and their runs."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess, Popen

import torch
from conftest import ROOT, start_python
from helpers import FIXTURES, TINY, write_tokens
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.api_pb2 import ListSessionGroupsRequest
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.cli.main import main
from aim_lightning.runs.directory import list_checkpoints, newest_checkpoint, step_of

PARTS = ("network", "ema", "discriminator", "optimizers", "schedulers", "cursor")


@dataclass
class Experiment:
    """An experiment's file, with its runs in runs/NAME next to it.

    Args:
        file: path of NAME.yaml.
    """

    file: Path

    @property
    def runs(self) -> Path:
        """Return the directory of all runs."""
        return self.file.parent / "runs" / self.file.stem

    def words(self, command: str, run: str, *options) -> list[str]:
        """Return the arguments of `aim-lightning` for a command on a run."""
        return [command, "--config", str(self.file), "--run", run, *map(str, options)]

    def fit(self, run: str, *options) -> Path:
        """Train in this process and return the run directory."""
        assert main(self.words("fit", run, *options)) == 0
        return self.runs / run

    def process(self, command: str, run: str, *options) -> CompletedProcess:
        """Run a command in a process; standard error is part of its stdout."""
        process = self.start(command, run, *options)
        output, _ = process.communicate(timeout=240)
        return CompletedProcess(process.args, process.returncode, output)

    def start(self, command: str, run: str, *options) -> Popen:
        """Start a command as a process; standard error is part of its stdout."""
        return start_python("-m", "aim_lightning", *self.words(command, run, *options))

    def copy(self, run: str, name: str, step: int | None = None) -> Path:
        """Copy a run and return the copy, as if killed right after the checkpoint of `step`; None = all checkpoints."""
        directory = self.runs / name
        shutil.copytree(self.runs / run, directory)
        for path in list_checkpoints(directory):
            if step is not None and step_of(path) > step:
                path.unlink()
        return directory


def write_config(root: Path, name: str = "tiny") -> Path:
    """Write fixtures/NAME.yaml into `root`, with its data and runs there, and return its path."""
    text = (FIXTURES / f"{name}.yaml").read_text()
    path = root / f"{name}.yaml"
    path.write_text(text.replace("CHECKOUT", str(ROOT)).replace("ROOT", str(root)))
    return path


def write_experiment(root: Path, views: int = 2, tokenizer_hash: str = "none") -> Path:
    """Write token shards (61 rows: 7 steps per epoch) and the file of the tiny experiment, and return its path."""
    for split, rows, seed in (("train", [25, 20, 16], 0), ("val", [19], 1)):
        write_tokens(root / "tokens" / split, rows, views=views, config=TINY, tokenizer_hash=tokenizer_hash, seed=seed)
    return write_config(root)


def events(run_dir: Path) -> EventAccumulator:
    """Read all TensorBoard events of a run."""
    accumulator = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Read all TensorBoard scalars of a run as (step, value) by tag."""
    accumulator = events(run_dir)
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def charts(run_dir: Path) -> dict[str, dict[str, list[str]]]:
    """Read TensorBoard's custom-scalars page as page -> chart -> regular expressions of its curves."""
    layout = layout_pb2.Layout()
    layout.ParseFromString(events(run_dir).Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0])
    return {page.title: {chart.title: list(chart.multiline.tag) for chart in page.chart} for page in layout.category}


def assert_charts_match_curves(run_dir: Path) -> None:
    """Check that every curve but the epoch is in a chart, and that no chart is empty."""
    tags, pages = set(scalars(run_dir)) - {"epoch"}, charts(run_dir)
    selected = {
        f"{page}/{chart}": {tag for tag in tags if any(re.match(text, tag) for text in expressions)}
        for page, content in pages.items()
        for chart, expressions in content.items()
    }
    assert not [name for name, curves in selected.items() if not curves]
    assert set().union(*selected.values()) == tags


def hparam_sessions(logdir: Path) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """Read TensorBoard's HPARAMS tab as (options, metrics) by run."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(logdir))
    runs.Reload()
    provider = MultiplexerDataProvider(runs, str(logdir))
    context = Context(TBContext(data_provider=provider, logdir=str(logdir)))
    request = ListSessionGroupsRequest(slice_size=100, allowed_statuses=range(4))
    groups = Handler(RequestContext(), context, "", request).run().session_groups
    return {
        group.name: (
            {name: value.number_value or value.string_value for name, value in group.hparams.items()},
            {metric.name.tag: metric.value for metric in group.metric_values},
        )
        for group in groups
    }


def series(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the scalars that do not depend on the machine's speed."""
    return {tag: values for tag, values in scalars(run_dir).items() if not tag.startswith("perf/")}


def assert_same(run_dir: Path, other: Path) -> None:
    """Compare the newest checkpoints of two runs, and their curves, to the bit."""
    first, second = (read_checkpoint(newest_checkpoint(path)) for path in (run_dir, other))
    assert first["trainer"]["global_step"] == second["trainer"]["global_step"] > 0
    assert first.keys() & set(PARTS) == second.keys() & set(PARTS) != set()
    assert not [part for part in PARTS if not equal(first.get(part), second.get(part))]
    assert series(run_dir) == series(other)


def equal(a, b) -> bool:
    """Return True if two states of tensors and plain values are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
