"""The fused training path in Triton's interpreter against float64; prints one JSON line. Run by test_fused.py."""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
from fast_interpreter import speed_up
from helpers import fixture, published_aim, relative

from aim_lightning.models import AiM, AiMConfig

BASE = {"d_model": 32, "n_layer": 2, "vocab_size": 50, "num_classes": 3, "num_tokens": 20, "d_state": 16, "headdim": 16}
# Lengths around the block of 64, sizes that no block divides, every type of modulation, MLP, widths without vectors.
CASES = {
    "layer": {"adaln": "layer"},
    "one code": {"adaln": "layer", "num_tokens": 1},
    "7 codes, group": {"adaln": "group", "num_groups": 2, "num_tokens": 7},
    "block": {"adaln": "group", "num_groups": 1, "num_tokens": 64},
    "block and one, no adaLN, MLP": {"adaln": "none", "d_intermediate": 24, "num_tokens": 65},
    "odd sizes": {"adaln": "layer", "d_model": 30, "headdim": 20, "d_state": 24, "num_tokens": 19},
    "odd heads, MLP": {"adaln": "layer", "d_model": 40, "headdim": 16, "d_intermediate": 16, "num_tokens": 10},
    "three blocks, wide state": {"adaln": "none", "n_layer": 1, "d_state": 40, "num_tokens": 130},
    "short convolution": {"adaln": "layer", "d_conv": 2, "num_tokens": 12},
    "wide state, three taps": {"adaln": "none", "d_model": 24, "headdim": 24, "d_state": 200, "d_conv": 3},
}


def network(**options) -> AiM:
    """Random network whose modulation is not the identity."""
    torch.manual_seed(0)
    model = AiM(AiMConfig(**{**BASE, **options}), "torch")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adaLN" in name or "scale_shift" in name:
                parameter.normal_(std=0.3)
    return model


def extreme(model: AiM) -> AiM:
    """Steps from e^-30 to 30, decays of e^-480, and exact zeros: gates of a new block, z of a head, rows of codes."""
    width = model.config.d_model
    with torch.no_grad():
        first, last = model.backbone.layers
        for mixer in (first.mixer, last.mixer):
            mixer.A_log.copy_(torch.linspace(0, 2.77, mixer.A_log.numel()))
            mixer.dt_bias.copy_(torch.linspace(-30, 30, mixer.dt_bias.numel()))
        for parameter in first.adaLN_modulation[1].parameters():
            parameter.zero_()
        for parameter in last.adaLN_modulation[1].parameters():
            parameter[:width] = 0  # no shift, so that rows of zeros remain
        last.mixer.in_proj.weight[: model.config.headdim] = 0
        model.backbone.embeddings.word_embeddings.weight[: model.config.vocab_size // 2] = 0
        model.backbone.embeddings.position_embeddings.weight.zero_()
    return model


def compare(model: AiM, images: int = 2, floor: float = 0.0) -> dict[str, float]:
    """Return the relative differences of loss and gradients from the plain network in float64.

    Args:
        model: its weights and sizes are compared.
        images: of the batch; the last one has the null class.
        floor: smallest norm that a gradient is compared with, as a share of the norm of all gradients.
    """
    exact = AiM(model.config, "torch")
    exact.load_state_dict(model.state_dict())
    exact.double()
    fused = AiM(model.config, "triton")
    fused.load_state_dict(model.state_dict())
    codes = torch.randint(model.config.vocab_size, (images, model.config.num_tokens))
    labels = torch.tensor([0, 1, model.config.num_classes])[-images:]
    losses = [model.loss(codes, labels) for model in (exact, fused)]
    for loss in losses:
        loss.backward()
    expected = {name: parameter.grad for name, parameter in exact.named_parameters()}
    smallest = floor * torch.nn.utils.get_total_norm(expected.values()).item()
    differences = {
        name: relative(parameter.grad.double(), expected[name], smallest)
        for name, parameter in fused.named_parameters()
        if expected[name].norm() > 1e-12
    }
    decay = [value for name, value in differences.items() if name.endswith(("A_log", "dt_bias"))]
    return {
        "loss": abs(losses[0].item() - losses[1].item()),
        "gradients": max(value for name, value in differences.items() if not name.endswith(("A_log", "dt_bias"))),
        "decay": max(decay, default=0.0),
    }


def published(name: str) -> float:
    """Return the relative difference of logits from those that the published code computed."""
    source, (_, data) = published_aim(name), fixture(name)
    model = AiM(source.config, "triton").eval()
    model.load_state_dict(source.state_dict())
    with torch.no_grad():
        logits = model(data["tokens"][:, :-1], data["labels"][:, 0])
    return relative(logits[:, data["logit_positions"]], data["logits"])


def repeated() -> bool:
    """Return True if two micro-batches of one step accumulate, with the same bits in a second run."""
    model = network(adaln="layer")
    fused = AiM(model.config, "triton")
    fused.load_state_dict(model.state_dict())
    gradients = []
    for _ in range(2):
        fused.zero_grad()
        for seed in range(2):
            codes = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(seed))
            (fused.loss(codes, torch.tensor([0, 1])) / 2).backward()
        gradients.append([p.grad.clone() for p in fused.parameters()])
    return all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def recomputed() -> bool:
    """Return True if activation checkpointing changes no bit of the loss and of the gradients."""
    source = network(adaln="group", num_groups=2, d_intermediate=24, n_layer=3)
    codes = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(0))
    results = []
    for mode in ("none", "blocks", "all"):
        model = AiM(source.config, "triton", mode)
        model.load_state_dict(source.state_dict())
        loss = model.loss(codes, torch.tensor([0, 1]))
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters())])
    return all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def directional(step: float = 1e-3) -> float:
    """Return the relative difference of the gradient's norm from the slope of the loss along the gradient."""
    model = AiM(network(adaln="layer").config, "triton")
    model.load_state_dict(network(adaln="layer").state_dict())
    codes, labels = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    model.loss(codes, labels).backward()
    parameters = list(model.parameters())
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    losses = []
    with torch.no_grad():
        for shift in (step, -2 * step):
            for parameter in parameters:
                parameter.add_(parameter.grad / norm, alpha=shift)
            losses.append(model.loss(codes, labels).double())
    slope = (losses[0] - losses[1]) / (2 * step)
    return abs(slope.item() / norm.item() - 1)


def main() -> None:
    """Print all comparisons."""
    speed_up()
    torch.set_num_threads(1)
    result = {name: compare(network(**options)) for name, options in CASES.items()}
    result["extreme"] = compare(extreme(network(adaln="layer", num_tokens=70)))
    result["published"] = {name: published(name) for name in ("tiny_group", "tiny_adaln")}
    result |= {"directional": directional(), "repeated": repeated(), "recomputed": recomputed()}
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
