"""Convert between our options and config.json of the published AiM repositories.

The published keys are the fields of MambaConfig in hp-l33/AiM. Five keys extend them: `adaln` (only "none"),
`position_embedding` (only false), `vqvae` (a tokenizer other than VQ-16 at 256 pixels), `class_names` and
`label_dropout` (only 0 or 1). They are written only for networks that the published code does not support.
"""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from aim_lightning.models import AiMConfig, VQConfig
from aim_lightning.utils.errors import UserError

# Published key -> option of AiMConfig.
SAME = ("d_model", "d_intermediate", "n_layer", "vocab_size", "num_classes", "num_tokens")
RENAMED = {name: name for name in SAME} | {f"{name}_drop": f"{name}_dropout" for name in ("token", "mixer", "mlp")}
# Options of the published code that are constant in our network; None = no effect on the numbers.
FIXED = {"attn_cfg": {}, "attn_layer_idx": [], "fused_add_norm": None, "pad_vocab_size_multiple": None}
FIXED |= dict.fromkeys(("residual_in_fp32", "rms_norm", "tie_embeddings"), True)
WRITTEN = {**FIXED, "fused_add_norm": True, "pad_vocab_size_multiple": 8}
# Keys of ssm_cfg: options of Mamba-2 with their defaults, which published files omit.
MIXER = {"d_state": 128, "d_conv": 4, "expand": 2, "headdim": 64, "chunk_size": 256}
OTHER = ("ssm_cfg", "adaln_group", "num_groups", "adaln", "position_embedding", "vqvae", "class_names", "label_dropout")


def check_fields(config: Any, source: str | Path) -> None:
    """Check that config.json describes a network that AiM supports.

    Args:
        config: content of the file.
        source: path for errors.

    Raises:
        UserError: not a mapping, an unknown field, or a value of another architecture.
    """
    if not isinstance(config, dict):
        raise UserError(f"{source} is not a mapping of options")
    names = config.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{source}: class_names must be a list of names")
    if names and len(names) != config.get("num_classes"):
        raise UserError(f"{source} has {len(names)} class_names for num_classes {config.get('num_classes')}")
    if config.get("label_dropout", 0) not in (0, 1):
        raise UserError(f"{source}: label_dropout is {config['label_dropout']!r}; it must be 0 or 1, or absent")
    mixer, tokenizer = config.get("ssm_cfg", {}), config.get("vqvae", {})
    if not isinstance(mixer, dict) or not isinstance(tokenizer, dict):
        raise UserError(f"{source}: ssm_cfg and vqvae must be mappings")
    unknown = sorted(config.keys() - {*RENAMED, *FIXED, *OTHER})
    unknown += [f"ssm_cfg.{name}" for name in sorted(mixer.keys() - {*MIXER, "layer", "ngroups"})]
    unknown += [f"vqvae.{name}" for name in sorted(tokenizer.keys() - {field.name for field in fields(VQConfig)})]
    if unknown:
        raise UserError(f"{source} has unknown fields: {', '.join(unknown)}")
    required = {name: value for name, value in FIXED.items() if value is not None and name in config}
    values = {**config, "ssm_cfg.layer": mixer.get("layer", "Mamba2"), "ssm_cfg.ngroups": mixer.get("ngroups", 1)}
    for name, value in {**required, "ssm_cfg.layer": "Mamba2", "ssm_cfg.ngroups": 1}.items():
        if values[name] != value:
            raise UserError(f"{source}: {name} is {values[name]!r}; AiM has {value!r}")


def aim_options(config: dict[str, Any]) -> dict[str, Any]:
    """Return the options of AiMConfig in a checked config.json."""
    options = {option: config[key] for key, option in RENAMED.items() if key in config}
    options |= {name: config["ssm_cfg"][name] for name in MIXER if name in config.get("ssm_cfg", {})}
    if "adaln_group" in config:
        options["adaln"] = "group" if config["adaln_group"] else "layer"
    options |= {name: config[name] for name in ("adaln", "position_embedding") if name in config}
    if options.get("adaln") == "group" and "num_groups" in config:
        options["num_groups"] = config["num_groups"]  # unused by the other forms
    return options


def to_published(
    aim: AiMConfig | None = None,
    vq: VQConfig | None = None,
    class_names: list[str] | None = None,
    label_dropout: float | None = None,
) -> dict[str, Any]:
    """Return the config.json of a directory that contains these networks."""
    config = _aim_fields(aim) if aim else {}
    if vq and (aim is None or vq != VQConfig()):
        config["vqvae"] = {**asdict(vq), "channel_multipliers": list(vq.channel_multipliers)}
    # Numbers as names are the default, and stay out of the published fields.
    if aim and class_names and class_names != [str(i) for i in range(aim.num_classes)]:
        config["class_names"] = list(class_names)
    if aim and label_dropout in (0, 1):  # guidance cannot be used; other values stay out of the published fields
        config["label_dropout"] = label_dropout
    return dict(sorted(config.items()))


def _aim_fields(aim: AiMConfig) -> dict[str, Any]:
    config = {key: getattr(aim, option) for key, option in RENAMED.items()} | WRITTEN
    special = {name: getattr(aim, name) for name, default in MIXER.items() if getattr(aim, name) != default}
    config["ssm_cfg"] = {"layer": "Mamba2", **special}
    config["adaln_group"] = aim.adaln == "group"
    config["num_groups"] = aim.num_groups if aim.adaln == "group" else 1
    if aim.adaln == "none":
        config["adaln"] = "none"
    if not aim.position_embedding:
        config["position_embedding"] = False
    return config
