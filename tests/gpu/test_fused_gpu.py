"""The fused training path on an NVIDIA GPU: tolerances by dtype, bits, launches without waiting."""

import pytest
import torch
from gpu.tolerances import GRADIENTS, LOGITS
from helpers import fixture, published_aim, relative

from aim_lightning.models import AiM, AiMConfig

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


def loss_and_gradients(model: AiM, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of one batch of random codes, under autocast."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(model.config.vocab_size, (3, model.config.num_tokens), generator=generator).cuda()
    model.zero_grad()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        loss = model.loss(codes, torch.tensor([0, 3, 10]).cuda())
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


def test_the_same_step_gives_the_same_bits():
    model = network("triton", adaln="layer")
    first_loss, first = loss_and_gradients(model, torch.bfloat16)
    second_loss, second = loss_and_gradients(model, torch.bfloat16)
    assert torch.equal(first_loss, second_loss)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["tiny_group", "tiny_adaln"])
def test_published_logits(name):
    source, (_, data) = published_aim(name), fixture(name)
    model = AiM(source.config, "triton")
    model.load_state_dict(source.state_dict())
    model = model.cuda().eval()
    with torch.no_grad():
        logits = model(data["tokens"][:, :-1].cuda(), data["labels"][:, 0].cuda()).cpu()
    assert relative(logits[:, data["logit_positions"]], data["logits"]) <= LOGITS[torch.float32]


def test_a_step_waits_for_nothing():
    model = network("triton", adaln="layer")
    loss_and_gradients(model, torch.bfloat16)  # kernels are compiled
    codes, labels = (
        torch.zeros(3, 256, dtype=torch.int64, device="cuda"),
        torch.zeros(3, dtype=torch.int64, device="cuda"),
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
