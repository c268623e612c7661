"""`aim-lightning weights import|export|inspect`: import, export and describe weights."""

import argparse
import importlib.metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aim_lightning.cli.config import Config
from aim_lightning.config.yaml import dump
from aim_lightning.pipeline import load, load_tokenizer
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_text, writing
from aim_lightning.weights import export_aim, export_vq, import_aim, import_vq, read_source
from aim_lightning.weights.inspect import Part, inspect
from aim_lightning.weights.save import write_run
from aim_lightning.weights.source import Source


def run(document: Config | None, options: argparse.Namespace) -> int:
    """Run the action and return the exit code."""
    return {"import": _import, "export": _export, "inspect": _inspect}[options.action](document, options)


def _import(document: Config, options: argparse.Namespace) -> int:
    """Write weights as the run runs/EXPERIMENT/RUN of the configuration."""
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


def _export(_: None, options: argparse.Namespace) -> int:
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
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    if source.run is not None:
        load(options.source, raw=options.raw, tokenizer=tokenizer).save_pretrained(out)
        return
    if tokenizer is None:
        tokenizer = import_vq(source)
    export_aim(
        import_aim(source), out, tokenizer=tokenizer, class_names=source.class_names, label_dropout=source.label_dropout
    )


def _inspect(_: None, options: argparse.Namespace) -> int:
    """Print a table per network; the exit code is 1 where names or shapes do not fit."""
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
    types = ", ".join(f"{name} ({count} tensors)" for name, count in sorted(part.types.items()))
    table = Table(title=part.kind, title_justify="left", show_header=False)
    table.add_row("parameters", f"{part.parameters:,}")
    table.add_row("types", types)
    for name, value in part.configuration.items():
        table.add_row(name, str(value))
    return table
