"""Files that hold weights, read onto the CPU without running any code that they contain."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from aim_lightning.checkpoint.torch_load import read_pickle
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json

CONFIG = "config.json"
SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
INDEX, PICKLED_INDEX = f"{SAFETENSORS}.index.json", f"{PICKLED}.index.json"
MAIN = (SAFETENSORS, INDEX, PICKLED, PICKLED_INDEX)  # of a model directory, in the order of preference


def read_file(path: Path) -> Any:
    """Content of a .safetensors file, or of anything that torch.save wrote.

    Raises:
        UserError: missing, truncated or foreign.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return read_pickle(path, "weights file")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"weights file {path} is damaged or no safetensors file ({reason})") from None


def main_file(directory: Path) -> Path | None:
    """The file or index that a model directory keeps its weights under; None where there is none."""
    return next((directory / name for name in MAIN if (directory / name).is_file()), None)


def weight_files(path: Path) -> list[Path]:
    """The file itself, or the shards that an index names.

    Raises:
        UserError: an index names something else than files beside it.
    """
    if not _is_index(path):
        return [path]
    return [path.with_name(name) for name in sorted(set(_weight_map(path).values()))]


def read_weights(path: Path) -> Any:
    """Content of a weights file, or of an index's shards put together.

    Raises:
        UserError: as `read_file`, or shards that do not hold what their index promises.
    """
    if not _is_index(path):
        return read_file(path)
    promised, found = _weight_map(path), {}
    for file in weight_files(path):
        for name, value in _shard(file).items():
            if promised.get(name) != file.name:
                raise UserError(f"{path} does not say that {name} is in {file.name}")
            found[name] = value
    absent = sorted(promised.keys() - found.keys())
    if absent:
        raise UserError(f"{path} promises {absent[0]} ({len(absent)} such names), which no shard holds")
    return found


def _is_index(path: Path) -> bool:
    return path.name.endswith(".index.json")


def _shard(file: Path) -> Mapping[str, Any]:
    content = read_file(file)
    if not isinstance(content, Mapping):
        raise UserError(f"{file} holds {type(content).__name__}, no mapping from names to tensors")
    return content


def _weight_map(path: Path) -> dict[str, str]:
    index = read_json(path, "index")
    names = index.get("weight_map") if isinstance(index, dict) else None
    plain = isinstance(names, dict) and all(isinstance(f, str) and Path(f).name == f for f in names.values())
    if not plain or not names:
        raise UserError(f"index {path} has no weight_map from names to files beside it")
    return names
