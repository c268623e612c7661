"""The fused training path on an NVIDIA GPU: tolerances by dtype, bits, launches without waiting."""

from functools import cache

import pytest
import torch
from gpu.tolerances import GRADIENTS, LOGITS
from helpers import fixture, published_aim, relative
from torch import nn

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.models.aim.backends import choose
from aim_lightning.models.aim.backends.plain import TorchBackend
from aim_lightning.models.aim.fused.stack import _mix
from aim_lightning.models.aim.mixer import Mamba2Mixer

pytestmark = pytest.mark.gpu
SIZES = {
    "layer": {"adaln": "layer"},
    "group, MLP": {"adaln": "group", "num_groups": 2, "d_intermediate": 384},
    "none, headdim 128, d_state 64": {"adaln": "none", "headdim": 128, "d_state": 64},
    "headdim 16, d_state 256": {"adaln": "layer", "headdim": 16, "d_state": 256},
    "odd sizes": {"adaln": "layer", "d_model": 200, "headdim": 40, "d_state": 24},
    "24x24 codes": {"adaln": "group", "num_groups": 1, "num_tokens": 576},
    "32x32 codes": {"adaln": "group", "num_groups": 1, "num_tokens": 1024},
    "19 codes": {"adaln": "layer", "num_tokens": 19},
}


@pytest.fixture(scope="module", autouse=True)
def _exact_products():
    if not torch.cuda.is_available():
        pytest.fail("no GPU that torch can use; these tests are for a machine that has one")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def network(backend: str, **options) -> AiM:
    """Random network whose modulation is not the identity."""
    torch.manual_seed(0)
    sizes = {"d_model": 256, "n_layer": 2, "vocab_size": 512, "num_classes": 10, "num_tokens": 256}
    model = AiM(AiMConfig(**{**sizes, **options}), backend)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adaLN" in name or "scale_shift" in name:
                parameter.normal_(std=0.1)
    return model.cuda()


def loss_and_gradients(model: AiM, dtype: torch.dtype, images: int = 3) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of one batch of random codes, under autocast."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(model.config.vocab_size, (images, model.config.num_tokens), generator=generator).cuda()
    labels = torch.tensor([0, 3, 10])[torch.arange(images) % 3].cuda()
    model.zero_grad()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        loss = model.loss(codes, labels)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", LOGITS)
@pytest.mark.parametrize("size", SIZES)
def test_loss_and_gradients_agree_with_float32(size, dtype):
    expected_loss, expected = loss_and_gradients(network("torch", **SIZES[size]), torch.float32)
    loss, gradients = loss_and_gradients(network("triton", **SIZES[size]), dtype)
    assert abs(loss - expected_loss) <= (1e-5 if dtype == torch.float32 else 1e-3) * expected_loss
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        if expected[name].norm() > 1e-9:
            assert relative(gradient, expected[name]) <= GRADIENTS[dtype], name


def identity(size: int) -> nn.Linear:
    """Return a projection that changes nothing, so that only the kernels between the products round."""
    linear = nn.Linear(size, size, bias=False)
    nn.init.eye_(linear.weight)
    return linear


def mixer_values(mix, config: AiMConfig, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    """Return output and gradients of a mixer between identities, as float64.

    Args:
        mix: maps (mixer, u) to the output, which has the width of the heads.
        config: sizes of the mixer.
        dtype: of the computation; inputs are rounded to bfloat16 in all.
        device: of the computation.
    """
    torch.manual_seed(0)
    mixer = Mamba2Mixer(config)
    mixer.init_weights()
    mixer.in_proj, mixer.out_proj = identity(mixer.in_proj.out_features), identity(config.d_inner)
    mixer.conv1d.to(torch.bfloat16)
    mixer.to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    sizes = (config.d_inner, config.d_inner, config.d_state, config.d_state, config.nheads)
    u = torch.randn(2, config.num_tokens, sum(sizes)).to(torch.bfloat16)
    d_out = torch.randn(2, config.num_tokens, config.d_inner).to(torch.bfloat16).to(device)
    u = u.to(device, dtype).requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = mix(mixer, u)
    (out.to(torch.promote_types(dtype, torch.float32)) * d_out).sum().backward()
    gradients = dict(zip(("z", "x", "B", "C", "dt"), u.grad.split(sizes, dim=-1), strict=True))
    gradients |= {name: getattr(mixer, name).grad for name in ("A_log", "dt_bias", "D")}
    gradients["taps"] = mixer.conv1d.weight.grad
    return {name: value.double() for name, value in ({"y": out.detach()} | gradients).items()}


def fused_mix(mixer: Mamba2Mixer, u: torch.Tensor) -> torch.Tensor:
    raw, row_scale = _mix(mixer, u)
    return raw.float() * row_scale[..., None]


@cache
def layer_errors(backend: str) -> dict[str, float]:
    """Return the relative differences of AiM-B's mixer in bf16 from float64."""
    config = AiMConfig.preset("AiM-B")
    if backend == "triton":
        mix = fused_mix
    else:
        from aim_lightning.models.aim.backends.mamba import MambaBackend

        mix = MambaBackend(config).mix
    exact = mixer_values(TorchBackend().mix, config, torch.float64, "cuda")
    result = mixer_values(mix, config, torch.bfloat16, "cuda")
    errors = {name: relative(value, exact[name]) for name, value in result.items()}
    print(f"bf16 errors of a layer, {backend}: {errors}")
    return errors


def test_a_layer_in_bf16_is_near_float64():
    errors = layer_errors("triton")
    for name, error in errors.items():
        is_sum = name in ("dt", "A_log", "dt_bias", "D", "taps")  # over heads, sequences or images
        assert error <= (1e-2 if is_sum else 6e-3), (name, errors)


@pytest.mark.skipif(choose.missing() is not None, reason="needs mamba-ssm")
def test_errors_of_a_layer_are_at_most_1_5_times_those_of_mamba_ssm():
    ours, others = layer_errors("triton"), layer_errors("mamba_ssm")
    assert all(error <= 1.5 * others[name] for name, error in ours.items()), (ours, others)


@pytest.mark.parametrize("images", [3, 64, 256])
def test_the_same_step_gives_the_same_bits(images):
    """From 61 images on, PyTorch's own gradient of an embedding of 512 codes adds atomically."""
    model = network("triton", adaln="layer")
    first_loss, first = loss_and_gradients(model, torch.bfloat16, images)
    for _ in range(4):
        loss, gradients = loss_and_gradients(model, torch.bfloat16, images)
        assert torch.equal(loss, first_loss)
        assert not [name for name, value in gradients.items() if not torch.equal(value, first[name])]


@pytest.mark.parametrize("name", ["tiny_group", "tiny_adaln"])
def test_published_logits(name):
    source, (_, data) = published_aim(name), fixture(name)
    model = AiM(source.config, "triton")
    model.load_state_dict(source.state_dict())
    model = model.cuda().eval()
    with torch.no_grad():
        logits = model(data["tokens"][:, :-1].cuda(), data["labels"][:, 0].cuda()).cpu()
    assert relative(logits[:, data["logit_positions"]], data["logits"]) <= LOGITS[torch.float32]


@pytest.mark.parametrize("images", [3, 64])
def test_a_step_waits_for_nothing(images):
    model = network("triton", adaln="layer")
    loss_and_gradients(model, torch.bfloat16, images)  # kernels are compiled
    codes, labels = (
        torch.zeros(images, 256, dtype=torch.int64, device="cuda"),
        torch.zeros(images, dtype=torch.int64, device="cuda"),
    )
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                model.loss(codes, labels).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_offsets_beyond_32_bits():
    """One layer of AiM-B's widths with 2,600 images: rows times widths pass 2^31."""
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < 60:
        pytest.skip(f"needs 60 GiB of GPU memory, {free:.0f} are free")
    model = network("triton", adaln="none", d_model=768, headdim=64, n_layer=1).eval()
    codes = torch.randint(512, (2600, 256), generator=torch.Generator().manual_seed(2)).cuda()
    labels = torch.zeros(2600, dtype=torch.int64, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        whole, last = model._hidden(codes[:, :-1], labels), model._hidden(codes[-2:, :-1], labels[-2:])
    assert torch.equal(whole[-2:], last) or relative(whole[-2:].float(), last.float()) <= 1e-2
