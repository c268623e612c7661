"""Write a model card: README.md with the Hub's metadata, from what a source of weights records.

What is not recorded is left out. Names and paths of this machine do not appear.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from aim_lightning.models import AiM, VQModel
from aim_lightning.runs.results import read_results
from aim_lightning.utils.table import markdown
from aim_lightning.utils.tensor_hash import hash_tensors
from aim_lightning.weights.hf_config import to_published
from aim_lightning.weights.source import Source

CARD, SAMPLES = "README.md", "samples.png"
REPOSITORY = "OWNER/NAME"  # in the examples; `weights push` puts the repository's name here
# The Hub's task of the published repositories: it has none for images of a class.
TASK = "unconditional-image-generation"
PAPER = "[Scalable Autoregressive Image Generation with Mamba](https://arxiv.org/abs/2408.12245)"
LISTED_CLASSES = 100
# Sections of a configuration that determine the weights.
TRAINING = ("seed_everything", "images", "model", "data", "trainer")
# Fields of config.json that the published code ignores although its results depend on them.
EXTENSIONS = ("adaln", "position_embedding", "vqvae")


@dataclass(frozen=True)
class Card:
    """Content of a model card.

    Args:
        source: of the weights.
        aim: the network; None for a tokenizer alone.
        tokenizer: the tokenizer.
        raw: the weights are trained instead of averaged ones, where the source has both.
        sampling: options of the sample grid by name; empty without a grid.
        license: identifier of the Hub; None = not stated.
        datasets: names of data sets on the Hub.
    """

    source: Source
    aim: AiM | None
    tokenizer: VQModel
    raw: bool = False
    sampling: dict[str, Any] = field(default_factory=dict)
    license: str | None = None
    datasets: Sequence[str] = ()

    @property
    def configuration(self) -> dict[str, Any]:
        """Return the configuration of the training; empty where the weights were not trained by this project."""
        run = self.source.run
        return run["configuration"] if run and "imported_from" not in run["trainer"] else {}

    def text(self) -> str:
        """Return the Markdown file."""
        configuration = (self.source.run or {}).get("configuration", {})
        title = configuration.get("experiment") or ("AiM" if self.aim else "VQ tokenizer")
        parts = [f"---\n{self._metadata()}\n---\n\n# {title}", *self._introduction(), *self._sizes()]
        return "\n\n".join([*parts, *self._training(), *self._scores(), *self._usage()]) + "\n"

    def _metadata(self) -> str:
        tags = ["image-generation", "class-conditional", "autoregressive", "mamba2"]
        tags = [*(tags if self.aim else ["image-tokenizer"]), "vector-quantization"]
        values = {"license": self.license, "datasets": list(self.datasets) or None, "tags": tags}
        return ModelCardData(library_name="aim_lightning", pipeline_tag=TASK if self.aim else None, **values).to_yaml()

    def _introduction(self) -> Iterator[str]:
        config = self.tokenizer.config
        rows, columns = self.tokenizer.grid
        codes = f"{rows}x{columns} codes of {config.codebook_size:,}"
        size = f"{config.image_size}x{config.image_size} pixels"
        if self.aim is None:
            yield f"VQ tokenizer: it turns images of {size} into {codes}, and back."
            return
        yield (
            f"AiM, an autoregressive image generator with Mamba-2 ({PAPER}), with its VQ tokenizer. "
            f"It generates images of {size} for one of {self.aim.config.num_classes:,} classes, as {codes}."
        )
        names = self.source.class_names or []
        if names and len(names) <= LISTED_CLASSES:
            yield "Classes, by label: " + ", ".join(f"{label} {name}" for label, name in enumerate(names)) + "."
        if self.sampling:
            options = ", ".join(f"{name} {value}" for name, value in self.sampling.items())
            yield f"![Samples, one class per row]({SAMPLES})\n\nSamples, not selected, one class per row: {options}."

    def _sizes(self) -> Iterator[str]:
        yield "## Architecture"
        for name, network in (("AiM", self.aim), ("VQ tokenizer", self.tokenizer)):
            if network is not None:
                parameters = sum(parameter.numel() for parameter in network.parameters())
                rows = {"parameters": f"{parameters:,}", **asdict(network.config)}
                yield markdown((name, ""), [(f"`{key}`", value) for key, value in rows.items()]).rstrip()

    def _training(self) -> Iterator[str]:
        if not self.configuration:
            return
        run, data = self.source.run, self.source.run.get("data") or {}
        averaged = run.get("ema") and not self.raw
        weights = "average (EMA) of the trained weights" if averaged else "trained weights, not averaged"
        images = f", on {data['rows']:,} images" if "rows" in data else ""
        yield f"## Training\n\n{run['trainer']['global_step']:,} optimizer steps{images}; {weights}."
        values = {key: self.configuration[key] for key in TRAINING if key in self.configuration}
        if ema := (self.configuration.get("callbacks") or {}).get("ema"):
            values["callbacks"] = {"ema": ema}
        yield _details("Configuration", values)

    def _scores(self) -> Iterator[str]:
        path, network = Path(self.source.name), self.aim or self.tokenizer
        if self.source.run is None or path.parent.name not in ("checkpoints", "best"):
            return
        results, sha256 = read_results(path.parents[1] / "results.json"), hash_tensors(network.state_dict())
        protocols = {name: entry for name, entry in results["protocol"].items() if name != "step"}
        protocols = {name: entry for name, entry in protocols.items() if entry.get("weights_sha256") == sha256}
        rows = [
            (f"`{metric}`", f"{results['metrics'][metric]:.4f}", name)
            for name, entry in protocols.items()
            for metric in entry["metrics"]
        ]
        if rows:
            yield "## Scores"
            yield markdown(("metric", "value", "protocol"), rows).rstrip()
            yield "Values of different protocols are not comparable."
            yield from (_details(f"Protocol of {name}", entry) for name, entry in protocols.items())

    def _usage(self) -> Iterator[str]:
        yield "## Use"
        if self.aim is None:
            yield _code(
                "from huggingface_hub import snapshot_download",
                "from aim_lightning.weights import import_vq",
                "",
                f'tokenizer = import_vq(snapshot_download("{REPOSITORY}"))',
            )
            return
        yield "With aim_lightning:"
        options = {name: self.sampling[name] for name in ("cfg_scale", "top_k", "top_p") if name in self.sampling}
        call = "".join(f", {name}={value}" for name, value in options.items())
        yield _code(
            "from aim_lightning import AiMPipeline",
            "",
            f'pipeline = AiMPipeline.from_pretrained("{REPOSITORY}")',
            f"images = pipeline.generate([0, 1]{call}, seed=1)  # labels to uint8 (2, 3, H, W)",
        )
        if set(to_published(self.aim.config, self.tokenizer.config)).isdisjoint(EXTENSIONS):
            yield "With the published code, in a checkout of <https://github.com/hp-l33/AiM>:"
            yield _code(
                "from models.aim import AiM",
                "",
                f'model = AiM.from_pretrained("{REPOSITORY}").cuda().eval()',
                f"images = model.generate(batch=2{call})",
            )
            yield "The published decoder gives code i the position i + 1, as `position_offset=1` does in aim_lightning."


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _details(title: str, values: dict[str, Any]) -> str:
    text = yaml.safe_dump(_without_paths(values), sort_keys=False, allow_unicode=True)
    return f"<details>\n<summary>{title}</summary>\n\n```yaml\n{text}```\n\n</details>"


def _without_paths(value: Any) -> Any:
    """Return plain values without what only this machine and its user have."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(item) for item in value]
    return _without_access(value) if isinstance(value, str) else value


def _without_access(text: str) -> str:
    """Return a text without absolute paths, commands, and names and passwords in URLs."""
    if text.startswith("pipe:"):
        return "pipe:"
    return Path(text).name if Path(text).is_absolute() else re.sub(r"(?<=://)[^/@]*@", "", text)
