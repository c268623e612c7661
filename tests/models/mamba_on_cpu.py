"""Backends compared with mamba-ssm's code on a CPU; prints one JSON object of relative differences.

It runs as a separate process, because Triton's interpreter must be chosen before anything imports triton.
"""

import json
from unittest import mock

import mamba_reference

mamba_reference.interpret()
mamba_reference.fake_causal_conv1d()
mamba_reference.make_importable()

import torch  # noqa: E402
from helpers import random_weights, relative  # noqa: E402
from mamba_ssm.modules import mlp as reference_mlp  # noqa: E402
from mamba_ssm.ops import selective_scan_interface  # noqa: E402
from mamba_ssm.ops.triton.selective_state_update import selective_state_update_ref  # noqa: E402
from mamba_ssm.ops.triton.ssd_combined import mamba_split_conv1d_scan_ref, ssd_chunk_scan_combined_ref  # noqa: E402

from aim_lightning.models import AiM, AiMConfig  # noqa: E402
from aim_lightning.models.aim.backends import mamba  # noqa: E402
from aim_lightning.models.aim.block import GatedMLP  # noqa: E402
from aim_lightning.models.aim.mixer import Mamba2Mixer  # noqa: E402
from aim_lightning.models.aim.scan import scan, scan_step_  # noqa: E402

# mamba_split_conv1d_scan_ref ends in the CUDA scan of Mamba-1; the library's reference of that replaces it.
selective_scan_interface.selective_scan_fn = selective_scan_interface.selective_scan_ref
# Widths of (in_proj, convolution): (296, 160) suit the fused path; in (284, 148) both are no multiples of 8, in
# (280, 148) the convolution alone.
SIZES = {
    "fused": {"d_state": 16, "headdim": 16},
    "unfused in_proj": {"d_state": 10, "headdim": 16},
    "unfused convolution": {"d_state": 10, "headdim": 32},
}
LABELS = torch.tensor([1, 5])


def config(**sizes) -> AiMConfig:
    return AiMConfig(
        d_model=64, n_layer=2, vocab_size=40, num_classes=5, num_tokens=24, adaln="group", chunk_size=16, **sizes
    )


def scan_inputs(length: int) -> list[torch.Tensor]:
    x, dt = torch.randn(2, length, 3, 8), torch.rand(2, length, 3) * 0.2
    return [x, dt, -torch.rand(3) * 8, torch.randn(2, length, 16), torch.randn(2, length, 16)]


def references() -> dict[str, float]:
    """Compare our PyTorch code with mamba-ssm's PyTorch references."""
    x, dt, a, b, c = scan_inputs(48)
    result = {
        "scan": relative(scan(x, dt, a, b, c), ssd_chunk_scan_combined_ref(x, dt, a, b[:, :, None], c[:, :, None], 16))
    }
    state = torch.randn(2, 3, 8, 16)
    wide = (2, 3, 8)
    expected_state = state.clone()
    expected = selective_state_update_ref(
        expected_state,
        x[:, 0],
        dt[:, 0, :, None].expand(wide),
        a[:, None, None].expand(3, 8, 16),
        b[:, 0, None],
        c[:, 0, None],
    )
    result["step"] = relative(scan_step_(x[:, 0], dt[:, 0], a, b[:, 0], c[:, 0], state), expected)
    result["step_state"] = relative(state, expected_state)
    return result | {"mixer": mixer_reference(), "mlp": mlp_reference()}


def mixer_reference() -> float:
    """Compare the mixer with mamba_split_conv1d_scan_ref, which needs complete chunks."""
    mixer, u = random_weights(Mamba2Mixer(config(**SIZES["fused"]))), torch.randn(2, 32, 64)
    mixer.init_weights()
    expected = mamba_split_conv1d_scan_ref(
        mixer.in_proj(u),
        mixer.conv1d.weight[:, 0],
        mixer.conv1d.bias,
        mixer.dt_bias,
        -torch.exp(mixer.A_log),
        mixer.D,
        16,
        rmsnorm_weight=mixer.norm.weight,
        rmsnorm_eps=mixer.norm.eps,
        outproj_weight=mixer.out_proj.weight,
        headdim=16,
        norm_before_gate=False,
    )
    return relative(mixer(u), expected)


def mlp_reference() -> float:
    """Compare the gated MLP with mamba-ssm's, loaded by its parameter names."""
    mlp, u = random_weights(GatedMLP(64, 48)), torch.randn(2, 5, 64)
    reference = reference_mlp.GatedMLP(64, 48, multiple_of=48)
    reference.load_state_dict(mlp.state_dict())
    return relative(mlp(u), reference(u))


def kernels(sizes: dict) -> dict:
    """Compare forward, gradients and decoding of a network on mamba-ssm's kernels with plain PyTorch."""
    plain = random_weights(AiM(config(**sizes), backend="torch"))
    fast = AiM(config(**sizes), backend="mamba_ssm")
    fast.load_state_dict(plain.state_dict())
    codes = torch.randint(40, (2, 23))
    logits = [network(codes, LABELS) for network in (plain, fast)]
    for value in logits:
        value.square().mean().backward()
    pairs = zip(fast.parameters(), plain.parameters(), strict=True)
    return {
        "backend": fast.backend,
        "fused": fast.backbone.backend.fused,
        "forward": relative(logits[1], logits[0]),
        "gradients": max(relative(a.grad, b.grad) for a, b in pairs),
        "decoding": relative(decode(fast, codes[:, :5]), logits[0][:, :6]),
    }


@torch.no_grad()
def decode(network: AiM, codes_BL: torch.Tensor) -> torch.Tensor:
    """Return the logits of every step for these codes."""
    condition, states = network.backbone.condition(LABELS), network.new_states(len(LABELS))
    steps = [network.step(None, -1, condition, states)]
    steps += [network.step(codes_BL[:, t], t, condition, states) for t in range(codes_BL.shape[1])]
    return torch.stack(steps, 1)


def refusals() -> dict[str, str | None]:
    """Return why the fused path is not taken, by case."""
    result = {f"d_conv {taps}": mamba.fused_refusal(config(d_conv=taps, **SIZES["fused"])) for taps in (1, 2, 4, 5)}
    with mock.patch.object(mamba, "causal_conv1d_fwd_function", None):
        return result | {"not installed": mamba.fused_refusal(config(**SIZES["fused"]))}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    paths = {path: kernels(sizes) for path, sizes in SIZES.items()}
    with mock.patch.object(mamba, "LARGEST_TENSOR", 1):
        paths["one image per call"] = kernels(SIZES["fused"])
    print(json.dumps(references() | paths | {"refusals": refusals()}))
