"""`aim-lightning weights import|export|inspect`: convert and describe weights."""

import argparse
import importlib.metadata
from pathlib import Path

from aim_lightning.cli.common_options import SOURCE, add_source
from aim_lightning.cli.config import Config
from aim_lightning.cli.registry import Command
from aim_lightning.config.yaml import dump
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_text, writing
from aim_lightning.utils.logging import log_next

HELP = "import, export or inspect weights"


def _add_export(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="directory for config.json and model.safetensors")
    tokenizer = f"tokenizer of an AiM: {SOURCE} (default: the one in SOURCE, or the one of its run)"
    parser.add_argument("--tokenizer", metavar="SOURCE", help=tokenizer)


def _import(config: Config, options: argparse.Namespace) -> int:
    """Write weights as the run runs/EXPERIMENT/RUN of the configuration."""
    from aim_lightning.weights import read_source
    from aim_lightning.weights.save import write_run

    directory, values = config.run_directory, config.values
    source = read_source(options.source, raw=options.raw)
    checkpoint = write_run(source, directory, values, importlib.metadata.version("lightning"))
    with writing(directory.config):
        write_text(directory.config, dump(values))
    print(f"{source.name} is now {checkpoint}")
    command = f"{'tokenize' if config.is_tokenizer else 'sample'} {directory.variables}"
    if not config.is_tokenizer and source.parts.vq and values["tokenizer"] != source.name:
        command += f' ARGS="--tokenizer {source.name}"'  # the configuration names another tokenizer
    log_next(f"make {command}")
    return 0


def _export(config: None, options: argparse.Namespace) -> int:
    """Write a source in the published layout; an AiM with the requested tokenizer, else the source's or its run's."""
    from aim_lightning.pipeline import load, load_tokenizer
    from aim_lightning.weights import export_aim, export_vq, import_aim, import_vq, read_source

    source, out = read_source(options.source, raw=options.raw), Path(options.out)
    content, usage = "AiM and its tokenizer", f'AiMPipeline.from_pretrained("{out}")'
    if not source.parts.aim and options.tokenizer:
        raise UserError(f"{source.name} is a tokenizer itself; leave --tokenizer out")
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    if not source.parts.aim:
        export_vq(import_vq(source), out)
        content, usage = "tokenizer", f'import_vq("{out}")'
    elif source.run is not None:  # its tokenizer and class names are part of the run
        load(options.source, raw=options.raw, tokenizer=tokenizer).save_pretrained(out)
    else:
        tokenizer, names = tokenizer or import_vq(source), source.class_names
        aim = import_aim(source)
        export_aim(aim, out, tokenizer=tokenizer, class_names=names, label_dropout=source.label_dropout)
    print(f"{content}: {out}/config.json and {out}/model.safetensors")
    log_next(f"aim-lightning weights inspect {out}, or {usage}")
    return 0


def _inspect(config: None, options: argparse.Namespace) -> int:
    """Print a table per network; return 1 if names or shapes do not fit."""
    from aim_lightning.weights.inspect import inspect

    report = inspect(options.source, raw=options.raw)
    print(f"{options.source}: {report.origin}")
    for path, size, digest in report.files:
        print(f"  {path}  {size:,} bytes  sha256 {digest}")
    if report.unread:
        print(f"  not read: {', '.join(report.unread)}")
    for part in report.parts:
        types = ", ".join(f"{name} ({count} tensors)" for name, count in sorted(part.types.items()))
        faults = "; ".join(part.faults) or "all there, none left over"
        rows = {"parameters": f"{part.parameters:,}", "types": types, **part.configuration, "names": faults}
        print(part.kind, *(f"  {name:20s}{value}" for name, value in rows.items()), sep="\n")
    return 1 if any(part.faults for part in report.parts) else 0


_IMPORT = "import weights as a run, for validate, sample and tokenize"
ACTIONS = {
    "import": Command(_IMPORT, _import, add_source),
    "export": Command("write a run or any other source in the published layout", _export, _add_export, False),
    "inspect": Command("print the content of a source and whether it fits", _inspect, add_source, False),
}
NEEDS_CONFIG = False
