"""`aim-lightning weights import|export|push|inspect`: convert, publish and describe weights."""

import argparse
import importlib.metadata
from pathlib import Path

from aim_lightning.cli.common_options import SOURCE, add_source, number, option
from aim_lightning.cli.config import Config
from aim_lightning.cli.registry import Command
from aim_lightning.config.yaml import dump
from aim_lightning.utils.files import write_text, writing
from aim_lightning.utils.logging import log_next

HELP = "import, export, publish or inspect weights"


def _add_export(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    out = "directory for config.json, model.safetensors, README.md and samples.png"
    parser.add_argument("--out", required=True, metavar="DIR", help=out)
    tokenizer = f"tokenizer of an AiM: {SOURCE} (default: the one in SOURCE, or the one of its run)"
    parser.add_argument("--tokenizer", metavar="SOURCE", help=tokenizer)
    images = "images per class in samples.png, for up to 8 classes of a run; 0 = no file"
    parser.add_argument("--samples", **option(images, 4, type=number(int, 0)))
    parser.add_argument("--license", metavar="ID", help="license in README.md, such as mit (default: not stated)")
    datasets = "data sets on the Hub that the weights were trained on, with commas (default: not stated)"
    parser.add_argument("--datasets", metavar="NAMES", help=datasets)


def _add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="directory that `weights export` wrote")
    parser.add_argument("repository", metavar="OWNER/NAME", help="repository on the Hub; is created if necessary")
    parser.add_argument("--private", action="store_true", help="create the repository as private")


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
    """Write a source in the published layout, with a model card."""
    from aim_lightning.cli.build.weights_export import export

    content, usage = export(options)
    out = Path(options.out)
    print(f"{content}: {', '.join(map(str, sorted(out.iterdir())))}")
    if not options.license:
        print("README.md states no license; --license ID sets it")
    log_next(f"aim-lightning weights inspect {out}, aim-lightning weights push {out} OWNER/NAME, or {usage}")
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


def _push(config: None, options: argparse.Namespace) -> int:
    """Upload a directory in one commit."""
    from aim_lightning.weights.upload import upload

    result = upload(options.directory, options.repository, options.private)
    for name, size in result.files.items():
        print(f"  {name}  {size:,} bytes")
    print(f"{options.repository}: {len(result.files)} files in one commit, {result.url}")
    log_next(f'AiMPipeline.from_pretrained("{options.repository}")')
    return 0


_IMPORT = "import weights as a run, for validate, sample and tokenize"
ACTIONS = {
    "import": Command(_IMPORT, _import, add_source),
    "export": Command("write a run or any other source in the published layout", _export, _add_export, False),
    "push": Command("upload an exported directory to the Hugging Face Hub", _push, _add_push, False),
    "inspect": Command("print the content of a source and whether it fits", _inspect, add_source, False),
}
NEEDS_CONFIG = False
