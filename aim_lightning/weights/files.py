"""Files that hold weights, read onto the CPU without running any code that they contain."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from aim_lightning.runs.reading import read_pickle
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json

SAFETENSORS, INDEX, PICKLED, CONFIG = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "config.json",
)


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


def is_model_folder(path: Path) -> bool:
    """Whether a folder has the layout of the Hugging Face hub."""
    return any((path / name).is_file() for name in (CONFIG, *_KINDS))


def weight_files(folder: Path) -> list[Path]:
    """The files of a model folder that hold its weights.

    Raises:
        UserError: there are none, or an index names something else than files beside it.
    """
    if (folder / SAFETENSORS).is_file():
        return [folder / SAFETENSORS]
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(_weight_map(folder).values()))]
    if (folder / PICKLED).is_file():
        return [folder / PICKLED]
    raise UserError(f"model folder {folder} holds none of {', '.join(_KINDS)}")


_KINDS = (SAFETENSORS, INDEX, PICKLED)


def read_folder(folder: Path) -> Any:
    """Weights of a model folder, its shards put together.

    Raises:
        UserError: no weights, or shards that do not hold what their index promises.
    """
    files = weight_files(folder)
    if len(files) == 1 and files[0].name in (SAFETENSORS, PICKLED):
        return read_file(files[0])
    promised, found = _weight_map(folder), {}
    for file in files:
        for name, value in read_file(file).items():
            if promised.get(name) != file.name:
                raise UserError(f"{folder / INDEX} does not say that {name} is in {file.name}")
            found[name] = value
    absent = sorted(promised.keys() - found.keys())
    if absent:
        raise UserError(f"{folder / INDEX} promises {absent[0]} ({len(absent)} such names), which no shard holds")
    return found


def _weight_map(folder: Path) -> dict[str, str]:
    index = read_json(folder / INDEX, "index")
    names = index.get("weight_map") if isinstance(index, dict) else None
    plain = isinstance(names, dict) and all(isinstance(f, str) and Path(f).name == f for f in names.values())
    if not plain or not names:
        raise UserError(f"index {folder / INDEX} has no weight_map from names to files beside it")
    return names
