"""mamba-ssm's kernels against plain PyTorch on an NVIDIA GPU."""

import logging

import pytest
import torch
from gpu.tolerances import CURVE, GRADIENTS, LOGITS
from helpers import fixture, published_aim, relative
from torch.nn import functional as F

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.models.aim.backends import choose
from aim_lightning.sampling import generate
from aim_lightning.utils.logging import log_once

pytestmark = pytest.mark.gpu
# in_proj is 1288 wide for the fused path and 1284 (not a multiple of 8) for the unfused one.
HEADS = {"fused": {"headdim": 64, "d_state": 128}, "unfused": {"headdim": 128, "d_state": 128}}
DTYPES = list(LOGITS)


@pytest.fixture(scope="module", autouse=True)
def _default_sums():
    if not choose.missing():
        # The environment selects one configuration per kernel at import; its sums are nevertheless the default ones.
        from mamba_ssm.utils.determinism import set_deterministic_mode

        set_deterministic_mode(False)


def inputs(path: str = "fused", n_layer: int = 4, **options) -> tuple[AiM, torch.Tensor, torch.Tensor]:
    """Return a random network on the plain backend, codes and labels."""
    torch.manual_seed(0)
    sizes = {"d_model": 256, "vocab_size": 512, "num_classes": 10, "num_tokens": 256, "adaln": "group"}
    plain = AiM(AiMConfig(n_layer=n_layer, **sizes, **HEADS[path], **options), backend="torch").cuda()
    return plain, torch.randint(512, (4, 255)).cuda(), torch.tensor([0, 3, 9, 10]).cuda()


def pair(path: str, **options) -> tuple[AiM, AiM, torch.Tensor, torch.Tensor]:
    """Return the same random network on the plain backend and on mamba-ssm's kernels, codes and labels."""
    plain, codes, labels = inputs(path, **options)
    kernels = on_backend(plain, "mamba_ssm")
    if path == "fused" and not kernels.backbone.backend.fused:
        pytest.skip(kernels.backbone.backend.kernels)
    return plain, kernels, codes, labels


def on_backend(network: AiM, backend: str) -> AiM:
    """Return a network with the same weights on another backend; skip the test where mamba-ssm is missing."""
    if backend == "mamba_ssm" and choose.missing():
        pytest.skip(choose.missing())
    other = AiM(network.config, backend=backend).cuda()
    other.load_state_dict(network.state_dict())
    return other


def autocast(dtype: torch.dtype):
    return torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", HEADS)
def test_forward_and_gradients(path, dtype):
    plain, kernels, codes, labels = pair(path)
    assert kernels.backbone.backend.fused == (path == "fused")
    expected, result = (logits_and_gradients(network, codes, labels, dtype) for network in (plain, kernels))
    assert_close(result, expected, dtype)


def test_bf16_errors_of_our_kernels_are_near_those_of_mamba_ssm():
    """At most 1.5 times as large, against plain PyTorch in float32."""
    plain, published, codes, labels = pair("fused")
    expected = everything(logits_and_gradients(plain, codes, labels, torch.float32))
    theirs, ours = (
        [relative(*both) for both in zip(everything(result), expected, strict=True)]
        for network in (published, on_backend(plain, "triton"))
        for result in [logits_and_gradients(network, codes, labels, torch.bfloat16)]
    )
    print(f"logits and gradients: ours {ours}, mamba_ssm {theirs}")
    assert all(one <= 1.5 * other for one, other in zip(ours, theirs, strict=True))


def everything(result: tuple[torch.Tensor, dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits, and all gradients as one vector."""
    return result[0], torch.cat([gradient.flatten() for gradient in result[1].values()])


def logits_and_gradients(network: AiM, codes, labels, dtype: torch.dtype) -> tuple[torch.Tensor, dict]:
    """Return logits under autocast and the gradients of cross-entropy, of those parameters that have one."""
    network.zero_grad()
    with autocast(dtype):
        logits = network(codes, labels).float()
    F.cross_entropy(logits[:, :-1].flatten(0, 1), codes.flatten()).backward()
    return logits, {name: value.grad for name, value in network.named_parameters() if value.grad is not None}


def assert_close(result: tuple[torch.Tensor, dict], expected: tuple[torch.Tensor, dict], dtype: torch.dtype) -> None:
    (logits, gradients), (expected_logits, expected_gradients) = result, expected
    assert relative(logits, expected_logits) <= LOGITS[dtype]
    assert gradients.keys() == expected_gradients.keys()  # the same parameters have one
    for name, gradient in gradients.items():
        assert relative(gradient, expected_gradients[name]) <= GRADIENTS[dtype], name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", HEADS)
def test_decoding_equals_teacher_forcing(path, dtype):
    plain, kernels, codes, labels = pair(path)
    with torch.no_grad(), autocast(dtype):
        complete = plain(codes[:, :40], labels).float()
        condition, states = kernels.backbone.condition(labels), kernels.new_states(len(labels))
        steps = [kernels.step(codes[:, t - 1] if t else None, t - 1, condition, states).float() for t in range(41)]
    assert relative(torch.stack(steps, 1), complete) <= LOGITS[dtype]


@pytest.mark.parametrize("name", ["tiny_group", "tiny_adaln"])
def test_published_numbers(name):
    model, (_, data) = on_backend(published_aim(name), "mamba_ssm").eval(), fixture(name)
    codes, labels = data["tokens"].cuda(), data["labels"][:, 0].cuda()
    with torch.no_grad():
        logits = model(codes[:, :-1], labels).cpu()
    assert relative(logits[:, data["logit_positions"]], data["logits"]) <= LOGITS[torch.float32]
    for cfg_scale in (1, 3):
        greedy = generate(model, labels, cfg_scale=cfg_scale, top_k=1, position_offset=1, decoder="plain")
        assert torch.equal(greedy.cpu(), data[f"greedy_{cfg_scale}"])


@pytest.mark.parametrize("options", [{"d_intermediate": 512}, {"position_embedding": False}])
def test_other_networks(options):
    plain, kernels, codes, labels = pair("fused", **options)
    with torch.no_grad():
        assert relative(kernels(codes, labels), plain(codes, labels)) <= LOGITS[torch.float32]


def test_auto_selects_the_kernels_and_logs_why(caplog):
    log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="aim_lightning"):
        assert AiM(AiMConfig(d_model=64, n_layer=1)).cuda().backend == "triton"
    assert "backend auto took triton" in caplog.text


def test_the_unfused_path_is_logged_once(caplog):
    if choose.missing():
        pytest.skip(choose.missing())
    from aim_lightning.models.aim.backends.mamba import MambaBackend

    with caplog.at_level(logging.INFO, logger="aim_lightning"):
        MambaBackend(AiMConfig(d_model=256, headdim=128))
    assert [record.getMessage() for record in caplog.records] == [
        "mamba_ssm: unfused scan, because in_proj is 1284 wide, not a multiple of 8"
    ]


def test_bf16_weights_keep_exact_parameters_and_agree():
    plain, kernels, codes, labels = pair("fused")
    with torch.no_grad():
        expected = plain(codes, labels)
        for network in (plain, kernels):
            network.to(torch.bfloat16)
            assert network.backbone.layers[0].mixer.A_log.dtype == torch.float32
            assert relative(network(codes, labels).float(), expected) <= LOGITS[torch.bfloat16]


@pytest.mark.parametrize("backend", ["torch", "mamba_ssm", "triton"])
def test_compiled_is_the_same(backend):
    plain, codes, labels = inputs(n_layer=2)  # each layer adds to the time of compilation
    network = on_backend(plain, backend)
    expected = logits_and_gradients(network, codes, labels, torch.bfloat16)
    network.compile()
    result = logits_and_gradients(network, codes, labels, torch.bfloat16)
    assert_close(result, expected, torch.bfloat16)


def test_two_hundred_steps_give_the_same_curve():
    """Compare all backends in bf16 autocast with plain PyTorch in float32, on codes with a structure to learn."""
    exact = smooth(curve("torch", torch.float32))
    assert exact[-1] < 0.8 * exact[0]
    for backend in ("torch", "triton", *([] if choose.missing() else ["mamba_ssm"])):
        distance = (smooth(curve(backend, torch.bfloat16)) - exact).abs().mean() / exact.mean()
        print(f"last loss {exact[-1]:.4f}, bf16 {backend} off by {distance:.2e}")
        assert distance <= CURVE


def curve(backend: str, dtype: torch.dtype) -> torch.Tensor:
    """Return the losses of 200 steps from the same weights on the same batches."""
    network = on_backend(inputs()[0], backend)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(200):
        labels = torch.randint(10, (16,), generator=generator)
        steps = torch.randint(0, 8, (16, 256), generator=generator)
        codes = ((steps.cumsum(1) + 40 * labels[:, None]) % 512).cuda()
        with autocast(dtype):
            loss = network.loss(codes, labels.cuda())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


def smooth(curve: torch.Tensor, window: int = 10) -> torch.Tensor:
    """Return the means of consecutive windows."""
    return curve.unflatten(0, (-1, window)).mean(1)
