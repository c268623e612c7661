"""`aim-lightning weights import|export|inspect`: import, export and describe weights."""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

from aim_lightning.cli.command import Command
from aim_lightning.cli.common_options import SOURCE, add_source
from aim_lightning.cli.config import Config
from aim_lightning.config.yaml import dump
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_text, writing

if TYPE_CHECKING:
    from rich.table import Table

    from aim_lightning.weights.inspect import Part
    from aim_lightning.weights.source import Source

HELP = "import, export or inspect weights"


def _add_export(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="directory for config.json and model.safetensors")
    tokenizer = f"tokenizer of an AiM: {SOURCE} (default: the one in SOURCE, or the one of its run)"
    parser.add_argument("--tokenizer", metavar="SOURCE", help=tokenizer)


def _import(document: Config, options: argparse.Namespace) -> int:
    """Write weights as the run runs/EXPERIMENT/RUN of the configuration."""
    from aim_lightning.weights import read_source
    from aim_lightning.weights.save import write_run

    values = document.values
    directory = RunDirectory(str(values["experiment"]), str(values["run"]), values["runs_root"])
    source = read_source(options.source, raw=options.raw)
    checkpoint = write_run(source, directory, values, importlib.metadata.version("lightning"))
    with writing(directory.config):
        write_text(directory.config, dump(values))
    print(f"{source.name} is now {checkpoint}")
    tokenizer = values["model"]["class_path"].endswith("TokenizerModule")
    command = "tokenize" if tokenizer else "sample"
    print(f"next: make {command} EXP={directory.experiment} RUN={directory.run}{_advice(source, values, tokenizer)}")
    return 0


def _advice(source: Source, values: dict, tokenizer: bool) -> str:
    """Return the option for the tokenizer of the source, where the configuration names another one."""
    if tokenizer or not source.parts.vq or values["tokenizer"] == source.name:
        return ""
    return f' ARGS="--tokenizer {source.name}"'


def _export(config: None, options: argparse.Namespace) -> int:
    from aim_lightning.weights import export_vq, import_vq, read_source

    source, out = read_source(options.source, raw=options.raw), Path(options.out)
    if not source.parts.aim:
        if options.tokenizer:
            raise UserError(f"{source.name} is a tokenizer itself; leave --tokenizer out")
        export_vq(import_vq(source), out)
        content, usage = "tokenizer", f'import_vq("{out}")'
    else:
        _export_aim(source, out, options)
        content, usage = "AiM and its tokenizer", f'AiMPipeline.from_pretrained("{out}")'
    print(f"{content}: {out}/config.json and {out}/model.safetensors")
    print(f"next: aim-lightning weights inspect {out}, or {usage}")
    return 0


def _export_aim(source: Source, out: Path, options: argparse.Namespace) -> None:
    """Export AiM with the requested tokenizer, else the source's or the run's."""
    from aim_lightning.pipeline import load, load_tokenizer
    from aim_lightning.weights import export_aim, import_aim, import_vq

    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    if source.run is not None:
        load(options.source, raw=options.raw, tokenizer=tokenizer).save_pretrained(out)
        return
    if tokenizer is None:
        tokenizer = import_vq(source)
    export_aim(
        import_aim(source), out, tokenizer=tokenizer, class_names=source.class_names, label_dropout=source.label_dropout
    )


def _inspect(config: None, options: argparse.Namespace) -> int:
    """Print a table per network; the exit code is 1 where names or shapes do not fit."""
    from rich.console import Console

    from aim_lightning.weights.inspect import inspect

    report = inspect(options.source, raw=options.raw)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{options.source}: {report.origin}")
    for path, size, digest in report.files:
        console.print(f"  {path}  {size:,} bytes  sha256 {digest}")
    if report.unread:
        console.print(f"  not read: {', '.join(report.unread)}")
    for part in report.parts:
        console.print(_table(part))
        console.print("  names: " + ("; ".join(part.faults) or "all there, none left over"))
    return 1 if any(part.faults for part in report.parts) else 0


def _table(part: Part) -> Table:
    from rich.table import Table

    types = ", ".join(f"{name} ({count} tensors)" for name, count in sorted(part.types.items()))
    table = Table(title=part.kind, title_justify="left", show_header=False)
    table.add_row("parameters", f"{part.parameters:,}")
    table.add_row("types", types)
    for name, value in part.configuration.items():
        table.add_row(name, str(value))
    return table


_IMPORT = "import weights as a run, for validate, sample and tokenize"
ACTIONS = {
    "import": Command(_IMPORT, _import, add_source),
    "export": Command("write a run or any other source in the published layout", _export, _add_export, False),
    "inspect": Command("print the content of a source and whether it fits", _inspect, add_source, False),
}
NEEDS_CONFIG = False
