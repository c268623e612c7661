"""One reading of any source of weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aim_lightning.checkpoint.format import check_content, is_checkpoint
from aim_lightning.models.vq.model import hash_weights
from aim_lightning.runs.directory import list_checkpoints, missing_source, newest_checkpoint
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json
from aim_lightning.weights.files import CONFIG, MAIN, main_file, read_weights
from aim_lightning.weights.hf_config import check_fields
from aim_lightning.weights.key_mapping import Parts, split, unwrap


@dataclass(frozen=True)
class Source:
    """Weights by network and name, with all that stood beside them.

    Args:
        name: the path, for messages.
        parts: weights, shared out to AiM, the tokenizer and neither; names are those of our networks.
        published: config.json of a model directory, its fields checked; None without one.
        run: content of a checkpoint of ours (configuration, class_names, tokenizer_hash, …); None for others.
        unread: what stands beside the weights in a larger checkpoint, such as an optimizer.
    """

    name: str
    parts: Parts
    published: dict[str, Any] | None = None
    run: dict[str, Any] | None = None
    unread: list[str] = field(default_factory=list)

    @property
    def class_names(self) -> list[str] | None:
        """Names by label, where the source has them."""
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
        """weights_hash of the tokenizer whose codes the AiM was trained on, by its run or as it stands beside it."""
        beside = hash_weights(self.parts.vq) if self.parts.aim and self.parts.vq else None
        return (self.run or {}).get("tokenizer_hash") or beside


def read_source(source: "str | Path | Mapping[str, Any] | Source", *, raw: bool = False) -> Source:
    """Read weights onto the CPU; no code in them is run.

    Args:
        source: .safetensors, .pt, .pth, .bin or .ckpt file; run directory; Hugging Face directory (model.safetensors or
            pytorch_model.bin or shards of either with their index, and config.json, without which the shapes tell the
            network), or one of its files; or a mapping from names to tensors.
        raw: the trained weights themselves where the source has averaged ones too.

    Raises:
        UserError: missing, damaged, foreign, or no weights in it.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, Mapping):
        return _from_content(source, "the mapping", raw)
    path = Path(source)
    if not path.exists():
        raise UserError(missing_source(path))
    file = find_file(path)
    return _from_content(read_weights(file), str(path if file.name in MAIN else file), raw, _published(file))


def find_file(path: Path) -> Path:
    """A file itself, the newest checkpoint of a run, or the file (or index) that a directory keeps its weights under.

    Raises:
        UserError: a directory of another kind.
    """
    if not path.is_dir():
        return path
    if list_checkpoints(path):
        return newest_checkpoint(path)
    file = main_file(path)
    if file is None:
        raise UserError(
            f"{path} is neither a run directory with checkpoints nor a Hugging Face directory (it holds none of "
            f"{', '.join(MAIN)}); name a weights file itself"
        )
    return file


def _published(file: Path) -> dict[str, Any] | None:
    """config.json beside the weights of a Hugging Face directory."""
    path = file.with_name(CONFIG)
    if file.name not in MAIN or not path.is_file():
        return None
    config = read_json(path, "configuration")
    check_fields(config, path)
    return config


def _from_content(content: Any, name: str, raw: bool, published: dict[str, Any] | None = None) -> Source:
    run = None
    if is_checkpoint(content):
        check_content(content, name)
        averaged = content.get("ema")
        run, content = dict(content), content["network"] if raw or not averaged else averaged["network"]
    weights, unread = unwrap(content, raw, name)
    parts = split(weights, name)
    if not parts.aim and not parts.vq:
        some = ", ".join(sorted(parts.other)[:3]) or "nothing"
        raise UserError(f"{name} holds no weights of AiM or of a VQ tokenizer (it has {some})")
    return Source(name, parts, published, run, unread)
