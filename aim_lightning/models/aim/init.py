"""Initialisation of AiM as published (reference: hp-l33/AiM and mamba_ssm.models.mixer_seq_simple)."""

import math

import torch
from torch import nn

from aim_lightning.models.aim.mixer import Mamba2Mixer


@torch.no_grad()
def init_weights(model: nn.Module) -> None:
    """Fill every parameter of an AiM in place from torch's global generator.

    A fresh plain-adaLN network is the identity through every block: its modulation, gates included, is zero.
    The group form starts with small random gates.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        elif isinstance(module, Mamba2Mixer):
            module.init_weights()
    _init_residual_outputs(model)
    _init_modulation(model)


def _init_residual_outputs(model: nn.Module) -> None:
    """Each of the n residual branches adds 1/sqrt(n) of its usual variance's root."""
    config = model.config
    branches = config.n_layer * (2 if config.d_intermediate else 1)
    for name, parameter in model.named_parameters():
        if name.endswith(("out_proj.weight", "mlp.fc2.weight")):
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
            parameter.div_(math.sqrt(branches))


def _init_modulation(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if "adaLN_modulation" in name:
            nn.init.zeros_(parameter)
        elif name.endswith("scale_shift_table"):
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[-1]))
