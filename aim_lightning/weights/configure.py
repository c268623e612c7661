"""The configuration of a source's networks: what its shapes say, completed by what stands beside the weights."""

import math
from dataclasses import asdict, fields
from typing import Any

from aim_lightning.models import AiMConfig, VQConfig
from aim_lightning.utils.errors import UserError
from aim_lightning.weights.hf_config import aim_options
from aim_lightning.weights.infer_config import POSITIONS, infer_aim, infer_vq
from aim_lightning.weights.shapes import Shapes
from aim_lightning.weights.source import Source

AIM, TOKENIZER = "aim_lightning.modules.aim.AiMModule", "aim_lightning.modules.tokenizer.TokenizerModule"


def known_aim(source: Source) -> dict[str, Any]:
    """The options of AiMConfig that the source tells; all of them where it is a run.

    Raises:
        UserError: no AiM in it, or weights and config.json contradict each other.
    """
    if source.run is not None:
        return asdict(_build(AiMConfig, _network_options(source, AIM), source.name))
    if not source.parts.aim:
        raise UserError(f"{source.name} holds no AiM, only a tokenizer")
    shapes = infer_aim(Shapes(source.parts.aim, "AiM", source.name))
    return _agree(shapes, aim_options(source.published or {}), source.name)


def aim_config(source: Source, num_tokens: int | None = None) -> AiMConfig:
    """Configuration of the source's AiM.

    Args:
        source: what was read.
        num_tokens: codes an image, for weights without position embedding that come without a configuration.

    Raises:
        UserError: no AiM in it, or weights, config.json and argument contradict each other.
    """
    options = _complete(known_aim(source), source.name, num_tokens=num_tokens)
    if "num_tokens" not in options:
        raise UserError(f"{source.name} has no position embedding, so its shapes do not tell num_tokens; give it")
    return _build(AiMConfig, options, source.name)


def known_vq(source: Source) -> dict[str, Any]:
    """The options of VQConfig that the source tells; all of them where it is a run.

    Raises:
        UserError: no tokenizer in it, or weights and config.json contradict each other.
    """
    if source.run is not None:
        return asdict(_build(VQConfig, _network_options(source, TOKENIZER), source.name))
    if not source.parts.vq:
        raise UserError(f"{source.name} holds no tokenizer, only AiM; name the tokenizer's own file or run")
    shapes = infer_vq(Shapes(source.parts.vq, "VQ tokenizer", source.name))
    said = dict((source.published or {}).get("vqvae", {}))
    if "channel_multipliers" in said:
        said["channel_multipliers"] = tuple(said["channel_multipliers"])
    options = _agree(shapes, said, source.name)
    codes = _num_tokens(source)
    if "image_size" not in options and codes:
        options["image_size"] = math.isqrt(codes) * 2 ** (len(options["channel_multipliers"]) - 1)
    return options


def vq_config(source: Source, image_size: int | None = None, norm_groups: int | None = None) -> VQConfig:
    """Configuration of the source's tokenizer.

    Args:
        source: what was read.
        image_size: height and width of its images, pixels; by default what the source says, else what fits the
            number of codes of the AiM beside it, else 256 as published. The same weights take images of any size,
            so that an argument overrides the source.
        norm_groups: groups of its GroupNorms, where the source does not tell them (32 as published).

    Raises:
        UserError: no tokenizer in it, or weights, config.json and argument contradict each other.
    """
    options = _complete(known_vq(source), source.name, norm_groups=norm_groups)
    if image_size is not None:
        options["image_size"] = image_size
    return _build(VQConfig, options, source.name)


def _build(kind: type, options: dict[str, Any], name: str) -> Any:
    """A configuration whose mistakes name the source that they stand in."""
    unknown = sorted(options.keys() - {field.name for field in fields(kind)})
    if unknown:
        raise UserError(f"{name} has unknown options of {kind.__name__}: {', '.join(unknown)}")
    try:
        return kind(**options)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _num_tokens(source: Source) -> int | None:
    """Codes an image of the AiM beside a tokenizer, where it tells."""
    positions = source.parts.aim.get(POSITIONS)
    return (source.published or {}).get("num_tokens") if positions is None else len(positions) - 1


def _complete(known: dict[str, Any], name: str, **arguments: int | None) -> dict[str, Any]:
    """What the source tells, and of the arguments what it leaves open.

    Raises:
        UserError: an argument contradicts the source.
    """
    given = {key: value for key, value in arguments.items() if value is not None}
    wrong = [key for key, value in given.items() if known.get(key, value) != value]
    if wrong:
        key = wrong[0]
        raise UserError(f"{name} has {key} {known[key]!r}, the argument says {given[key]!r}; leave {key} out")
    return {**known, **given}


def _agree(shapes: dict[str, Any], said: dict[str, Any], name: str) -> dict[str, Any]:
    """Both together; what config.json says must be what the weights are.

    Raises:
        UserError: it is not, or a dropout is no probability.
    """
    wrong = [
        f"{key} {value!r} where the weights have {shapes[key]!r}"
        for key, value in said.items()
        if key in shapes and shapes[key] != value
    ]
    if wrong:
        raise UserError(f"{name}: config.json says {'; '.join(wrong)}")
    rest = {key: value for key, value in said.items() if key not in shapes}
    odd = [key for key, value in rest.items() if isinstance(value, bool) or not isinstance(value, int | float)]
    if odd:
        raise UserError(f"{name}: config.json has {odd[0]} {rest[odd[0]]!r}; it must be a number")
    return {**shapes, **rest}


def _network_options(source: Source, class_path: str) -> dict[str, Any]:
    """model.init_args.network of a checkpoint of ours."""
    model = source.run["configuration"].get("model") or {}
    if model.get("class_path") != class_path:
        raise UserError(f"{source.name} is a checkpoint of {model.get('class_path')}, expected {class_path}")
    return model["init_args"]["network"]
