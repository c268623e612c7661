"""The kernels of the VQ decoder through Triton's interpreter; prints one JSON object of relative differences.

It runs as a separate process, because the interpreter must be chosen before anything imports triton.
"""

import json

import torch
from helpers import relative

from aim_lightning.models import VQConfig, VQModel
from aim_lightning.models.vq.coder import NormSiLU
from aim_lightning.models.vq.fused import FusedDecoder, FusedNormSiLU

SIZES = {"image_size": 16, "codebook_size": 64, "base_channels": 16, "channel_multipliers": (1, 2)}
SIZES |= {"num_res_blocks": 1, "z_channels": 32, "norm_groups": 8}


@torch.no_grad()
def norms() -> list[float]:
    """Return the differences from PyTorch's norm: with and without shift, with several and with cut parts."""
    result = []
    for channels, groups, height, width in ((32, 8, 9, 7), (64, 64, 40, 41), (16, 2, 1, 1)):
        norm, shift = NormSiLU(channels, groups), 2 * torch.randn(channels)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        x = (torch.randn(2, channels, height, width) * 3 + 1).bfloat16()
        for added in (None, shift):
            expected = norm(x.float() + (0 if added is None else added[:, None, None]))
            result.append(relative(FusedNormSiLU(norm, added)(x).float(), expected))
    return result


def decoders() -> dict[str, float]:
    """Return the differences from float32 of the fused decoder and of autocast."""
    model = VQModel(VQConfig(**SIZES)).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    codes = torch.randint(0, 64, (2, 64))
    expected = model.decode(codes)
    with torch.autocast("cpu", torch.bfloat16):
        result = {"autocast": relative(model.decode(codes).float(), expected)}
    result["fused"] = relative(FusedDecoder(model).decode(codes).float(), expected)
    result["unchanged"] = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return result


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(json.dumps({"norms": norms(), **decoders()}))
