"""Export weights with a model card and, for an AiM of a run, with a sample grid."""

import argparse
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from aim_lightning.pipeline import AiMPipeline, load, load_tokenizer
from aim_lightning.sampling import SamplingOptions
from aim_lightning.sampling.options import PIPELINE_OPTIONS
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.grid import labelled_grid, png_bytes
from aim_lightning.utils.progress import ProgressBar
from aim_lightning.weights import Source, export_aim, export_vq, import_aim, import_vq, read_source
from aim_lightning.weights.infer_config import network_class
from aim_lightning.weights.model_card import CARD, SAMPLES, Card
from aim_lightning.weights.save import check_published

GRID_CLASSES = 8
# Options that choose devices and speed; the card does not list them.
UNLISTED = {*PIPELINE_OPTIONS, "decoder", "precision"}


def export(options: argparse.Namespace) -> tuple[str, str]:
    """Write the directory `--out`; return what it contains, as a noun, and the call that loads it.

    An AiM is written with the requested tokenizer, else with the source's or its run's.

    Args:
        options: of `weights export`.

    Raises:
        UserError: the source cannot be read, contains another network than AiM, has no tokenizer, or the directory
            cannot be written.
    """
    source = read_source(options.source, raw=options.raw)
    datasets = [name.strip() for name in (options.datasets or "").split(",") if name.strip()]
    stated = {"raw": options.raw, "license": options.license, "datasets": datasets}
    if source.parts.aim:
        check_published(network_class(source))  # before the samples of the card are generated
        _export_pipeline(source, options, stated)
        return "AiM and its tokenizer", f'AiMPipeline.from_pretrained("{options.out}")'
    if options.tokenizer:
        raise UserError(f"{source.name} is a tokenizer itself; leave --tokenizer out")
    tokenizer = import_vq(source)
    export_vq(tokenizer, options.out, {CARD: Card(source, None, tokenizer, **stated).text().encode()})
    return "tokenizer", f'import_vq("{options.out}")'


def _export_pipeline(source: Source, options: argparse.Namespace, stated: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    facts = {"class_names": source.class_names, "label_dropout": source.label_dropout}
    if source.run is None:
        pipeline, sampling = AiMPipeline(import_aim(source), tokenizer or import_vq(source), **facts), None
    else:  # its tokenizer is part of the run
        pipeline = load(options.source, raw=options.raw, tokenizer=tokenizer)
        sampling = _sampling(source) if options.samples else None
    files, listed = {}, {}
    if sampling:
        files[SAMPLES] = _sample_grid(pipeline, sampling, options.samples)
        listed = _listed(sampling)
    card = Card(source, pipeline.aim, pipeline.tokenizer, sampling=listed, **stated)
    files[CARD] = card.text().encode()
    export_aim(pipeline.aim, Path(options.out), tokenizer=pipeline.tokenizer, files=files, **facts)


def _sampling(source: Source) -> SamplingOptions:
    """Return the sampling options of a run, for any device, without guidance where that was not trained."""
    recorded = source.run["configuration"].get("sampling") or {}
    # Runs of earlier versions may name options that no longer exist, such as pixel_compile.
    names = {field.name for field in fields(SamplingOptions)}
    sampling = SamplingOptions(**{name: value for name, value in recorded.items() if name in names})
    portable = {"decoder": "plain", "precision": "auto", "pixel_precision": "float32"}
    portable |= {"cfg_scale": 1.0} if source.label_dropout in (0, 1) else {}
    return replace(sampling, batch_size="auto", **portable)


def _listed(sampling: SamplingOptions) -> dict[str, Any]:
    """Return guidance, seed, and the other options that are not at their default."""
    default = asdict(SamplingOptions())
    values = {name: value for name, value in asdict(sampling).items() if name not in UNLISTED}
    return {name: value for name, value in values.items() if name in ("cfg_scale", "seed") or value != default[name]}


def _sample_grid(pipeline: AiMPipeline, sampling: SamplingOptions, columns: int) -> bytes:
    """Generate the PNG of a grid with a row per class, on a GPU if there is one."""
    count = len(pipeline.class_names)
    labels = [i * count // min(count, GRID_CLASSES) for i in range(min(count, GRID_CLASSES))]
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    options = pipeline.resolve(sampling)
    options = replace(options, batch_size=min(options.batch_size, len(labels) * columns))
    labels_B = torch.tensor(labels).repeat_interleave(columns)
    steps = -(-len(labels_B) // options.batch_size) * pipeline.aim.config.num_tokens
    with ProgressBar(SAMPLES, steps, "steps") as bar:
        images = pipeline.generate(labels_B, on_step=lambda *_: bar.advance(1), **options.options())
    return png_bytes(labelled_grid(images, columns, [pipeline.class_names[label] for label in labels]))
