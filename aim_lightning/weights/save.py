"""Write weights: in the published layout (config.json and model.safetensors), or as a run of this project."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from aim_lightning.checkpoint.io import load_weights, write_checkpoint
from aim_lightning.models import NETWORKS, AiM, AiMConfig, VQConfig, VQModel
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import atomic_directory, write_bytes, write_json, writing
from aim_lightning.weights.hf_config import to_published
from aim_lightning.weights.infer_config import AIM, TOKENIZER, check_same
from aim_lightning.weights.key_mapping import AIM_PREFIX, HEAD, VQ_PREFIX, WORDS, split
from aim_lightning.weights.load import aim_weights, vq_weights
from aim_lightning.weights.source import CONFIG, SAFETENSORS, Source


def export_aim(
    aim: AiM,
    directory: str | Path,
    *,
    tokenizer: VQModel | None = None,
    class_names: list[str] | None = None,
    label_dropout: float | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write AiM, and its tokenizer where given, in the layout of the published checkpoints.

    Names are the network's own with the prefix `mamba.`, and the tokenizer's with `vqvae.`. The tied head is named in
    the file's metadata only, as `save_model` of safetensors does. Types are unchanged.

    Args:
        aim: compiled or not.
        directory: is created; an earlier export in it is replaced.
        tokenizer: a VQModel; other tokenizers have no published layout.
        class_names: by label; written unless they are the numbers of the labels.
        label_dropout: share of training images without their class; written where it rules out guidance (0 or 1).
        files: further files by name, such as a model card.

    Returns:
        the directory.

    Raises:
        UserError: another network than AiM, another type of tokenizer, or a directory that has other content or
            cannot be written.
    """
    check_published(type(aim.config))
    if tokenizer is not None and not isinstance(tokenizer, VQModel):
        raise UserError(f"the published layout needs a VQModel as tokenizer, not a {type(tokenizer).__name__}")
    # The head shares the memory of the word embedding, which safetensors refuses to write twice.
    tensors = {f"{AIM_PREFIX}.{name}": value for name, value in _weights(aim).items() if name != HEAD}
    if tokenizer is not None:
        tensors |= {f"{VQ_PREFIX}.{name}": value for name, value in _weights(tokenizer).items()}
    config = to_published(aim.config, tokenizer.config if tokenizer is not None else None, class_names, label_dropout)
    # One metadata entry only: safetensors writes several in random order, so that equal exports would differ.
    return _write(directory, tensors, config, {f"{AIM_PREFIX}.{HEAD}": f"{AIM_PREFIX}.{WORDS}"}, files)


def check_published(config_class: type) -> None:
    """Check that networks of a configuration class have a published layout.

    Raises:
        UserError: it is another class than AiMConfig.
    """
    if config_class is not AiMConfig:
        raise UserError(f"a {NETWORKS[config_class].__name__} has no published layout; share its run directory instead")


def export_vq(tokenizer: VQModel, directory: str | Path, files: Mapping[str, bytes] | None = None) -> Path:
    """Write a tokenizer alone, under LlamaGen's names without a prefix, and further files by name.

    Raises:
        UserError: the directory has other content or cannot be written.
    """
    return _write(directory, _weights(tokenizer), to_published(vq=tokenizer.config), {"format": "pt"}, files)


def _weights(network: nn.Module) -> dict:
    """Return plain names with contiguous tensors on the CPU."""
    parts = split(network.state_dict(), type(network).__name__)
    return {name: value.detach().cpu().contiguous() for name, value in {**parts.aim, **parts.vq}.items()}


def _write(
    directory: str | Path, tensors: dict, config: dict, metadata: dict[str, str], files: Mapping[str, bytes] | None
) -> Path:
    with writing(directory), atomic_directory(directory) as temporary:
        write_json(temporary / CONFIG, config)
        for name, content in (files or {}).items():
            write_bytes(temporary / name, content)
        try:
            save_file(tensors, temporary / SAFETENSORS, metadata=metadata)
        except SafetensorError as error:  # raised for a full disk
            raise OSError(str(error)) from error
        # safetensors creates files readable by their owner only; use the same permissions as for config.json.
        (temporary / SAFETENSORS).chmod((temporary / CONFIG).stat().st_mode)
    return Path(directory)


def write_run(source: Source, directory: RunDirectory, configuration: dict[str, Any], lightning: str) -> Path:
    """Write the source's AiM or tokenizer as the checkpoint of step 0 of a run.

    Args:
        source: of `read_source`.
        directory: of the run; must contain no checkpoint.
        configuration: the composed configuration of this run, which determines the network.
        lightning: version of Lightning that will read the checkpoint.

    Returns:
        the checkpoint file.

    Raises:
        UserError: the run exists, or the configuration describes another network.
    """
    # Step 0 next to later steps would look like a checkpoint of the same training.
    if directory.checkpoints():
        raise UserError(f"{directory.path} already holds a run; give another --run, or remove it first")
    class_path = configuration["model"]["class_path"]
    if class_path not in (AIM, TOKENIZER):
        raise UserError(f"model.class_path is {class_path}; weights can be imported for {AIM} and {TOKENIZER}")
    sizes = configuration["model"]["init_args"].get("network") or {}
    config = AiMConfig(**sizes) if class_path == AIM else VQConfig(**sizes)
    check_same(source, config)
    network = AiM(config) if class_path == AIM else VQModel(config)
    load_weights(network, aim_weights(source) if class_path == AIM else vq_weights(source, config), source.name)
    trainer = {"imported_from": source.name, "pytorch-lightning_version": lightning, "weight_groups": ["network"]}
    content = {"network": network.state_dict(), "ema": None, "optimizers": [], "schedulers": [], "data": None}
    content |= {"random_state": [], "cursor": {"epoch": 0, "batch": 0}, "configuration": configuration}
    content |= {"class_names": source.class_names, "tokenizer_hash": source.tokenizer_hash}
    content["trainer"] = trainer | {"epoch": 0, "global_step": 0, "callbacks": {}}
    path = directory.checkpoint_directory / "step=00000000.ckpt"
    write_checkpoint(content, path)
    return path
