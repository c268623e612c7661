"""Read any source of weights onto the CPU, without running code that it contains."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from aim_lightning.checkpoint.format import check_content, is_checkpoint
from aim_lightning.checkpoint.torch_load import read_pickle
from aim_lightning.models import AiMConfig, GPTConfig, VQConfig
from aim_lightning.models.vq.model import hash_weights
from aim_lightning.runs.directory import list_checkpoints, missing_source, newest_checkpoint
from aim_lightning.utils.errors import UserError, first_line
from aim_lightning.utils.files import read_json
from aim_lightning.weights.hf_config import check_fields
from aim_lightning.weights.key_mapping import Parts, split, unwrap

CONFIG = "config.json"
SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
INDEX_ENDING = ".index.json"
INDEX, PICKLED_INDEX = SAFETENSORS + INDEX_ENDING, PICKLED + INDEX_ENDING
MAIN = (SAFETENSORS, INDEX, PICKLED, PICKLED_INDEX)  # of a model directory, in order of preference
# Class path of the LightningModule by the configuration of its network; names only, since weights need no Lightning.
MODULES = {
    AiMConfig: "aim_lightning.modules.aim.AiMModule",
    GPTConfig: "aim_lightning.modules.gpt.GPTModule",
    VQConfig: "aim_lightning.modules.tokenizer.TokenizerModule",
}


def module_path(run: Mapping[str, Any]) -> str | None:
    """Return the class path of the LightningModule that wrote a checkpoint's content."""
    return (run["configuration"].get("model") or {}).get("class_path")


@dataclass(frozen=True)
class Source:
    """Weights by network and name, with the metadata of their source.

    Args:
        name: path for messages.
        parts: weights of stage 2 (AiM), of the tokenizer and of neither, named as in our networks.
        published: checked config.json of a model directory; None without one.
        run: content of a checkpoint of this project (configuration, class_names, tokenizer_hash, …); None for others.
        unread: other keys of a larger checkpoint, such as an optimizer.
    """

    name: str
    parts: Parts
    published: dict[str, Any] | None = None
    run: dict[str, Any] | None = None
    unread: list[str] = field(default_factory=list)

    @property
    def class_names(self) -> list[str] | None:
        """Return the class names by label; None where the source has none."""
        return (self.run or self.published or {}).get("class_names")

    @property
    def label_dropout(self) -> float | None:
        """Return the share of training images without their class, where it is recorded.

        None for a network that was initialised from other weights: those may have trained the null class.
        """
        if self.run is None:
            return (self.published or {}).get("label_dropout")
        options = (self.run["configuration"].get("model") or {}).get("init_args") or {}
        initialised = options.get("init_from") or "imported_from" in self.run["trainer"]
        return None if initialised else options.get("label_dropout")

    @property
    def tokenizer_hash(self) -> str | None:
        """Return the weights_hash of the tokenizer of AiM's codes, from its run or from the tokenizer next to it."""
        included = hash_weights(self.parts.vq) if self.parts.aim and self.parts.vq else None
        return (self.run or {}).get("tokenizer_hash") or included

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Check that AiM was trained on this tokenizer's codes, where the source records it.

        Raises:
            UserError: the network was trained on another tokenizer.
        """
        trained_on = self.tokenizer_hash
        if trained_on and tokenizer.weights_hash != trained_on:
            other = f"another tokenizer (weights hash {trained_on[:12]}…); give that one: tokenizer= or --tokenizer"
            raise UserError(f"{self.name} was trained on the codes of {other}")


AnySource = str | Path | Mapping[str, Any] | Source  # of `read_source`


def read_source(source: AnySource, *, raw: bool = False) -> Source:
    """Read weights onto the CPU without running code from them.

    Args:
        source: one of: a .safetensors, .pt, .pth, .bin or .ckpt file; a run directory; a Hugging Face directory or one
            of its files; a mapping from names to tensors. A Hugging Face directory contains model.safetensors,
            pytorch_model.bin, or shards of either with their index. Without config.json the shapes determine the
            network.
        raw: read the trained weights where the source has averaged ones too.

    Raises:
        UserError: missing, damaged or foreign, or without weights.
    """
    # A source that is read already passes through, so that callers may read it once for several networks.
    if isinstance(source, Source):
        return source
    if isinstance(source, Mapping):
        return _from_content(source, "the mapping", raw)
    path = Path(source)
    if not path.exists():
        raise UserError(missing_source(path))
    file = find_file(path)
    return _from_content(read_weights(file), str(path if file.name in MAIN else file), raw, _read_config(file))


def find_file(path: Path) -> Path:
    """Return a file itself, the newest checkpoint of a run, or the main file or index of a model directory.

    Raises:
        UserError: the directory is neither a run nor a model directory.
    """
    if not path.is_dir():
        return path
    # A run first: its directory may also contain an export.
    if list_checkpoints(path):
        return newest_checkpoint(path)
    file = main_file(path)
    if file is None:
        hint = f"(it holds none of {', '.join(MAIN)}); give a weights file"
        raise UserError(f"{path} is neither a run directory with checkpoints nor a Hugging Face directory {hint}")
    return file


def main_file(directory: Path) -> Path | None:
    """Return the weights file or index of a model directory; None without one."""
    return next((directory / name for name in MAIN if (directory / name).is_file()), None)


def weight_files(path: Path) -> list[Path]:
    """Return the file itself, or the shards that an index lists.

    Raises:
        UserError: the index lists something else than files next to it.
    """
    if not path.name.endswith(INDEX_ENDING):
        return [path]
    return [path.with_name(name) for name in sorted(set(_weight_map(path).values()))]


def read_weights(path: Path) -> Any:
    """Read a weights file, or all shards of an index.

    Raises:
        UserError: missing, damaged or foreign, or shards that do not contain what their index lists.
    """
    if path.name.endswith(INDEX_ENDING):
        weights, actual = {}, set()
        for file in weight_files(path):
            content = read_weights(file)
            if not isinstance(content, Mapping):
                raise UserError(f"{file} holds {type(content).__name__}, no mapping from names to tensors")
            weights |= content
            actual |= {(name, file.name) for name in content}
        # A name in another shard would be read twice or replaced silently.
        if wrong := sorted(actual ^ set(_weight_map(path).items()), key=str):
            raise UserError(f"{path} and its files differ in {wrong[0][0]} ({len(wrong)} names); download them again")
        return weights
    if path.suffix != ".safetensors":
        return read_pickle(path, "weights file")
    if not path.is_file():
        raise UserError(f"weights file {path} {'is no regular file' if path.exists() else 'does not exist'}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"weights file {path} is damaged or not a safetensors file ({first_line(error)})") from None


def _weight_map(path: Path) -> dict[str, str]:
    index = read_json(path, "index")
    names = index.get("weight_map") if isinstance(index, dict) else None
    # Only plain file names: an index must not reach outside its directory.
    plain = isinstance(names, dict) and all(isinstance(f, str) and Path(f).name == f for f in names.values())
    if not plain or not names or any(file.endswith(INDEX_ENDING) for file in names.values()):
        raise UserError(f"index {path} has no weight_map from names to files next to it")
    return names


def _read_config(file: Path) -> dict[str, Any] | None:
    path = file.with_name(CONFIG)
    if file.name in MAIN and path.is_file():
        check_fields(config := read_json(path, "configuration"), path)
        return config
    return None


def _from_content(content: Any, name: str, raw: bool, published: dict[str, Any] | None = None) -> Source:
    run = None
    if is_checkpoint(content):
        check_content(content, name)
        averaged = content.get("ema")
        run, content = dict(content), content["network"] if raw or not averaged else averaged["network"]
    weights, unread = unwrap(content, raw, name)
    # Only AiM's files omit the tied head; runs of other networks contain all names.
    parts = split(weights, name, tied=run is None or module_path(run) == MODULES[AiMConfig])
    if not parts.aim and not parts.vq:
        examples = ", ".join(sorted(parts.other)[:3]) or "nothing"
        raise UserError(f"{name} holds no weights of AiM or of a VQ tokenizer (it has {examples})")
    return Source(name, parts, published, run, unread)
