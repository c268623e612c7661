"""Infer the configuration of a network from the shapes of its weights, and complete it from config.json or a run."""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from aim_lightning.models import NETWORKS, AiMConfig, VQConfig
from aim_lightning.utils.errors import UserError
from aim_lightning.weights.hf_config import aim_options
from aim_lightning.weights.source import MODULES, Source, module_path

AIM, TOKENIZER = MODULES[AiMConfig], MODULES[VQConfig]
LAYER = r"backbone\.layers\.\d+\."
POSITIONS = "backbone.embeddings.position_embeddings.weight"
# Options that do not change the weights, so the configuration decides.
FREE = {"token_dropout", "mixer_dropout", "mlp_dropout", "chunk_size", "dropout", "image_size", "usage_window"}


class Shapes:
    """Shapes of one network's weights by name, with errors that name the source.

    Args:
        weights: named as in our networks.
        network: noun for the network in errors.
        source: path of the weights in errors.
    """

    def __init__(self, weights: Mapping[str, Tensor], network: str, source: str) -> None:
        self.shapes = {name: tuple(value.shape) for name, value in weights.items()}
        self.network, self.source = network, source

    def get(self, pattern: str, dimensions: int) -> tuple[int, ...]:
        """Return the most frequent shape among the names that match, so that one misshapen layer has no effect.

        Raises:
            UserError: no name matches, or the shape has another number of dimensions.
        """
        counts = Counter(self.shapes[name] for name in self.matching(pattern))
        shape, name = max(counts, key=counts.get, default=None), pattern.replace("\\", "")
        if shape is None:
            raise UserError(f"{self.source} holds no complete {self.network}: missing: {name}")
        if len(shape) != dimensions:
            expected = f"{self.network} has {dimensions} dimensions there"
            raise UserError(f"{self.source}: {name} has shape {shape}; {expected}")
        return shape

    def matching(self, pattern: str) -> list[str]:
        """List the names that match a regular expression completely."""
        return [name for name in self.shapes if re.fullmatch(pattern, name)]

    def count(self, pattern: str) -> int:
        """Return one more than the largest number in the pattern's group; 0 where nothing matches."""
        numbers = (re.match(pattern, name) for name in self.shapes)
        return max((int(match[1]) + 1 for match in numbers if match), default=0)

    def ratio(self, size: int, part: int, option: str) -> int:
        """Return size / part.

        Raises:
            UserError: it is not an integer.
        """
        if part < 1 or size < 1 or size % part:
            raise UserError(f"{self.source}: no {self.network} has these shapes: {option} would be {size} / {part}")
        return size // part


def infer_aim(shapes: Shapes) -> dict[str, Any]:
    """Return the options of AiMConfig that the shapes determine.

    Dropouts and chunk_size are missing, and num_tokens without a position embedding.

    Raises:
        UserError: a required weight is missing, or no AiM has these shapes.
    """
    vocab_size, d_model = shapes.get(r"backbone\.embeddings\.word_embeddings\.weight", 2)
    classes, _ = shapes.get(r"backbone\.cls_embed\.embedding_table\.weight", 2)
    has_mlp = bool(shapes.matching(LAYER + r"mlp\..*"))
    d_inner = shapes.get(LAYER + r"mixer\.out_proj\.weight", 2)[1]
    conv_dim, _, d_conv = shapes.get(LAYER + r"mixer\.conv1d\.weight", 3)
    nheads = shapes.get(LAYER + r"mixer\.A_log", 1)[0]
    options = {
        "d_model": d_model,
        "vocab_size": vocab_size,
        "d_conv": d_conv,
        "n_layer": shapes.count(r"backbone\.layers\.(\d+)\."),
        "num_classes": classes - 1,  # the last row is the null class of guidance
        "position_embedding": POSITIONS in shapes.shapes,
        "d_intermediate": shapes.get(LAYER + r"mlp\.fc2\.weight", 2)[1] if has_mlp else 0,
        "expand": shapes.ratio(d_inner, d_model, "expand"),
        "d_state": shapes.ratio(conv_dim - d_inner, 2, "d_state"),  # the convolution runs over x, B and C
        "headdim": shapes.ratio(d_inner, nheads, "headdim"),
    }
    if POSITIONS in shapes.shapes:
        options["num_tokens"] = shapes.get(re.escape(POSITIONS), 2)[0] - 1  # one position is the class token's
    if shapes.matching(LAYER + r"scale_shift_table") or shapes.matching(r"backbone\.adaln_group\..*"):
        out, _ = shapes.get(r"backbone\.adaln_group\.1\.weight", 2)
        rows = (6 if has_mlp else 3) * d_model  # shift, scale and gate per branch
        return {**options, "adaln": "group", "num_groups": shapes.ratio(out, rows, "num_groups")}
    # Without any modulation weights the network has none.
    return {**options, "adaln": "layer" if shapes.matching(LAYER + r"adaLN_modulation\..*") else "none"}


def infer_vq(shapes: Shapes) -> dict[str, Any]:
    """Return the options of VQConfig that the shapes determine: all but image_size, norm_groups and dropout.

    Raises:
        UserError: a required weight is missing, or no tokenizer has these shapes.
    """
    base, *_ = shapes.get(r"encoder\.conv_in\.weight", 4)
    levels = range(shapes.count(r"encoder\.conv_blocks\.(\d+)\."))
    widths = [shapes.get(rf"encoder\.conv_blocks\.{i}\.res\.\d+\.conv2\.weight", 4)[0] for i in levels]
    codebook_size, codebook_dim = shapes.get(r"quantize\.embedding\.weight", 2)
    options = {
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
        "base_channels": base,
        "channel_multipliers": tuple(shapes.ratio(width, base, "a channel multiplier") for width in widths),
        "num_res_blocks": shapes.count(r"encoder\.conv_blocks\.0\.res\.(\d+)\."),
        "z_channels": shapes.get(r"encoder\.conv_out\.weight", 4)[0],
    }
    if shapes.matching(r"quantize\.codebook_used"):
        options["usage_window"] = shapes.get(r"quantize\.codebook_used", 1)[0]
    return options


def network_class(source: Source) -> type:
    """Return the class of the configuration of the source's network of stage 2; only runs contain others than AiM."""
    path = module_path(source.run) if source.run is not None else None
    return next((config for config in NETWORKS if MODULES[config] == path), AiMConfig)


def aim_config(source: Source, num_tokens: int | None = None) -> Any:
    """Return the configuration of the source's AiM, or of the network of stage 2 that its run trained.

    Args:
        source: of `read_source`.
        num_tokens: codes per image, for weights with neither position embedding nor configuration.

    Raises:
        UserError: it contains no AiM, or weights, config.json and argument contradict each other.
    """
    config_class = network_class(source)
    options = _complete(_options(source, config_class), source.name, num_tokens=num_tokens)
    if "num_tokens" not in options:
        raise UserError(f"{source.name} has no position embedding, so its shapes do not contain num_tokens; give it")
    return _build(config_class, options, source.name)


def vq_config(source: Source, image_size: int | None = None, norm_groups: int | None = None) -> VQConfig:
    """Return the configuration of the source's tokenizer.

    Args:
        source: of `read_source`.
        image_size: height and width of images in pixels, which overrides the source. By default the source's, else the
            size that fits the number of codes of its AiM, else 256 as published.
        norm_groups: groups of its GroupNorms, for sources without a configuration (32 as published).

    Raises:
        UserError: it contains no tokenizer, or weights, config.json and argument contradict each other.
    """
    options = _complete(_options(source, VQConfig), source.name, norm_groups=norm_groups)
    return _build(VQConfig, options | ({} if image_size is None else {"image_size": image_size}), source.name)


def check_same(source: Source, expected: Any, may_differ: Collection[str] = ()) -> None:
    """Check that a source contains the network of a configuration.

    Args:
        source: of `read_source`.
        expected: the configuration's network.
        may_differ: further options that may differ.

    Raises:
        UserError: it contains no such network, or another one.
    """
    options, configured = _options(source, type(expected)), asdict(expected)
    # The number of groups has no effect without adaLN-group, so it may differ there.
    free = {*FREE, *may_differ, *(() if options.get("adaln") == "group" else ("num_groups",))}
    changed = [key for key, value in options.items() if key not in free and value != configured[key]]
    if changed:
        changes = "; ".join(f"{key} is {options[key]} there and {configured[key]} here" for key in changed)
        raise UserError(f"{source.name} is another network than model.network: {changes}")


def _options(source: Source, config_class: type) -> dict[str, Any]:
    """Return the options of a network in the source: all of them for a run, else those that are known."""
    is_aim, name, published = config_class is AiMConfig, source.name, source.published or {}
    if source.run is not None:
        actual, class_path = module_path(source.run), MODULES[config_class]
        if actual != class_path:
            raise UserError(f"{name} is a checkpoint of {actual}, expected {class_path}")
        return asdict(_build(config_class, source.run["configuration"]["model"]["init_args"]["network"], name))
    if config_class not in (AiMConfig, VQConfig):
        raise UserError(f"{name} is not a run of {MODULES[config_class]}; only such a run contains its weights")
    if is_aim:
        if not source.parts.aim:
            raise UserError(f"{name} holds no AiM, only a tokenizer")
        return _merge(infer_aim(Shapes(source.parts.aim, "AiM", name)), aim_options(published), name)
    if not source.parts.vq:
        raise UserError(f"{name} holds no tokenizer, only AiM; give the tokenizer's own file or run")
    config = dict(published.get("vqvae", {}))
    if isinstance(levels := config.get("channel_multipliers"), list):
        config["channel_multipliers"] = tuple(levels)  # JSON has no tuples
    options = _merge(infer_vq(Shapes(source.parts.vq, "VQ tokenizer", name)), config, name)
    positions = source.parts.aim.get(POSITIONS)
    codes = published.get("num_tokens") if positions is None else len(positions) - 1
    if "image_size" not in options and isinstance(codes, int):
        # Each level but the last halves the image, and the grid of codes is square.
        options["image_size"] = math.isqrt(codes) * 2 ** (len(options["channel_multipliers"]) - 1)
    return options


def _merge(inferred: dict[str, Any], config: dict[str, Any], name: str) -> dict[str, Any]:
    """Add the options of config.json, which must agree with the weights."""
    wrong = [key for key, value in config.items() if inferred.get(key, value) != value]
    if wrong:
        values = "; ".join(f"{key} {config[key]!r} where the weights have {inferred[key]!r}" for key in wrong)
        raise UserError(f"{name}: config.json has {values}")
    return config | inferred


def _complete(options: dict[str, Any], name: str, **arguments: int | None) -> dict[str, Any]:
    """Add the arguments that are not None, which must not contradict the source."""
    for key, value in arguments.items():
        if value is not None and options.setdefault(key, value) != value:
            raise UserError(f"{name} has {key} {options[key]!r}, the argument says {value!r}; leave {key} out")
    return options


def _build(config_class: type, options: dict[str, Any], name: str) -> Any:
    """Build a configuration; its errors name the source."""
    if unknown := sorted(options.keys() - config_class.__annotations__.keys()):
        raise UserError(f"{name} has unknown options of {config_class.__name__}: {', '.join(unknown)}")
    try:
        return config_class(**options)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
