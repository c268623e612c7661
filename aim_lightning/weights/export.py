"""The published layout: a directory of config.json and model.safetensors, complete or absent."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from aim_lightning.models import AiM, VQModel
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import atomic_directory, write_json, writing
from aim_lightning.weights.files import CONFIG, SAFETENSORS
from aim_lightning.weights.hf_config import to_published
from aim_lightning.weights.key_mapping import AIM_PREFIX, HEAD, VQ_PREFIX, WORDS, split


def export_aim(
    aim: AiM,
    directory: str | Path,
    *,
    tokenizer: VQModel | None = None,
    class_names: list[str] | None = None,
    label_dropout: float | None = None,
) -> Path:
    """Write AiM, and its tokenizer where given, as the published checkpoints have them.

    Names: `mamba.` and the network's own, without the tied head, which the file's metadata names instead (as
    safetensors' save_model does); `vqvae.` and the tokenizer's own. Types stay as they are.

    Args:
        aim: compiled or not.
        directory: made; an earlier export there is replaced.
        tokenizer: a VQModel; other tokenizers have no published layout.
        class_names: by label; written where they are not just the labels' numbers.
        label_dropout: share of training images without their class; written where it rules out guidance (0 or 1).

    Raises:
        UserError: another kind of tokenizer, or the directory holds something else or cannot be written.
    """
    if tokenizer is not None and not isinstance(tokenizer, VQModel):
        raise UserError(f"the published layout has a place for a VQModel, not for {type(tokenizer).__name__}")
    tensors = {f"{AIM_PREFIX}.{name}": value for name, value in _weights(aim).items() if name != HEAD}
    if tokenizer is not None:
        tensors |= {f"{VQ_PREFIX}.{name}": value for name, value in _weights(tokenizer).items()}
    config = to_published(aim.config, tokenizer.config if tokenizer is not None else None, class_names, label_dropout)
    # One entry: with more, safetensors' file would differ from one writing to the next.
    return _write(directory, tensors, config, {f"{AIM_PREFIX}.{HEAD}": f"{AIM_PREFIX}.{WORDS}"})


def export_vq(tokenizer: VQModel, directory: str | Path) -> Path:
    """Write a tokenizer alone, under LlamaGen's names, which have no prefix.

    Raises:
        UserError: the directory holds something else or cannot be written.
    """
    return _write(directory, _weights(tokenizer), to_published(vq=tokenizer.config), {"format": "pt"})


def _weights(network: nn.Module) -> dict:
    """Plain names, each tensor with memory of its own on the CPU."""
    parts = split(network.state_dict(), type(network).__name__)
    return {name: value.detach().cpu().contiguous() for name, value in {**parts.aim, **parts.vq}.items()}


def _write(directory: str | Path, tensors: dict, config: dict, metadata: dict[str, str]) -> Path:
    with writing(directory), atomic_directory(directory) as temporary:
        write_json(temporary / CONFIG, config)
        try:
            save_file(tensors, temporary / SAFETENSORS, metadata=metadata)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(str(error)) from error
        # safetensors writes for the owner alone; others may read it as they may the configuration.
        (temporary / SAFETENSORS).chmod((temporary / CONFIG).stat().st_mode)
    return Path(directory)
