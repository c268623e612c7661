"""Configurations read off the shapes of weights."""

from typing import Any

from aim_lightning.weights.shapes import Shapes

LAYER = r"backbone\.layers\.\d+\."
POSITIONS = "backbone.embeddings.position_embeddings.weight"


def infer_aim(shapes: Shapes) -> dict[str, Any]:
    """The options of AiMConfig that the shapes fix: all but dropouts, chunk_size, and num_tokens without positions.

    Raises:
        UserError: a weight is missing without which nothing can be said, or shapes that no AiM has.
    """
    vocab_size, d_model = shapes.get("backbone.embeddings.word_embeddings.weight", 2)
    classes, _ = shapes.get("backbone.cls_embed.embedding_table.weight", 2)
    options = {
        "d_model": d_model,
        "n_layer": shapes.count(r"backbone\.layers\.(\d+)\."),
        "vocab_size": vocab_size,
        "num_classes": classes - 1,
        "position_embedding": POSITIONS in shapes,
        "d_intermediate": shapes.usual(LAYER + r"mlp\.fc2\.weight", 2)[1] if _has_mlp(shapes) else 0,
    }
    if POSITIONS in shapes:
        options["num_tokens"] = shapes.get(POSITIONS, 2)[0] - 1
    return options | _mixer(shapes, d_model) | _modulation(shapes, d_model)


def _mixer(shapes: Shapes, d_model: int) -> dict[str, int]:
    d_inner = shapes.usual(LAYER + r"mixer\.out_proj\.weight", 2)[1]
    conv_dim, _, d_conv = shapes.usual(LAYER + r"mixer\.conv1d\.weight", 3)
    nheads = shapes.usual(LAYER + r"mixer\.A_log", 1)[0]
    return {
        "expand": shapes.ratio(d_inner, d_model, "expand"),
        "d_conv": d_conv,
        "d_state": shapes.ratio(conv_dim - d_inner, 2, "d_state"),
        "headdim": shapes.ratio(d_inner, nheads, "headdim"),
    }


def _modulation(shapes: Shapes, d_model: int) -> dict[str, Any]:
    if shapes.matching(LAYER + r"scale_shift_table") or shapes.matching(r"backbone\.adaln_group\..*"):
        rows = (6 if _has_mlp(shapes) else 3) * d_model
        out, _ = shapes.get("backbone.adaln_group.1.weight", 2)
        return {"adaln": "group", "num_groups": shapes.ratio(out, rows, "num_groups")}
    return {"adaln": "layer" if shapes.matching(LAYER + r"adaLN_modulation\..*") else "none"}


def _has_mlp(shapes: Shapes) -> bool:
    return bool(shapes.matching(LAYER + r"mlp\..*"))


def infer_vq(shapes: Shapes) -> dict[str, Any]:
    """The options of VQConfig that the shapes fix: all but image_size, norm_groups and dropout.

    Raises:
        UserError: a weight is missing without which nothing can be said, or shapes that no tokenizer has.
    """
    base, *_ = shapes.get("encoder.conv_in.weight", 4)
    levels = shapes.count(r"encoder\.conv_blocks\.(\d+)\.")
    widths = [shapes.usual(rf"encoder\.conv_blocks\.{i}\.res\.\d+\.conv2\.weight", 4)[0] for i in range(levels)]
    codebook_size, codebook_dim = shapes.get("quantize.embedding.weight", 2)
    options = {
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
        "base_channels": base,
        "channel_multipliers": tuple(shapes.ratio(width, base, "a channel multiplier") for width in widths),
        "num_res_blocks": shapes.count(r"encoder\.conv_blocks\.0\.res\.(\d+)\."),
        "z_channels": shapes.get("encoder.conv_out.weight", 4)[0],
    }
    if "quantize.codebook_used" in shapes:
        options["usage_window"] = shapes.get("quantize.codebook_used", 1)[0]
    return options
