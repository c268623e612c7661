"""The transformer baseline on an NVIDIA GPU: steps, training in bfloat16, compilation, captured sequences."""

import copy
from itertools import product

import pytest
import torch
from conftest import ROOT
from gpu.tolerances import GRADIENTS, LOGITS
from helpers import random_weights, relative
from torch.profiler import ProfilerActivity, profile

from aim_lightning.models import GPT, GPTConfig
from aim_lightning.sampling import SamplingOptions, generate

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
SIZES = {"d_model": 256, "n_layer": 3, "n_head": 4, "vocab_size": 512, "num_classes": 10, "num_tokens": 64}
LABELS = torch.tensor([0, 3, 9, 10])


def network(checkpointing: str = "none", **options) -> GPT:
    """Return a random network without dropout, on the GPU."""
    torch.manual_seed(0)
    sizes = SIZES | dict.fromkeys(("token_dropout", "mixer_dropout", "mlp_dropout"), 0.0)
    return random_weights(GPT(GPTConfig(**sizes | options), "auto", checkpointing), std=0.05).to(DEVICE)


def codes(num_tokens: int = 64) -> torch.Tensor:
    return torch.randint(512, (4, num_tokens), generator=torch.Generator().manual_seed(1)).to(DEVICE)


def autocast(dtype: torch.dtype):
    return torch.autocast(DEVICE, dtype=dtype, enabled=dtype != torch.float32)


def steps(model: GPT, codes: torch.Tensor) -> torch.Tensor:
    """Return the logits of every decoding step for these codes."""
    condition, states = model.condition(LABELS.to(DEVICE)), model.new_states(len(codes))
    inputs = [(None, -1)] + [(codes[:, t], t) for t in range(codes.shape[1] - 1)]
    return torch.stack([model.step(code, position, condition, states).float() for code, position in inputs], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("n_head", [4, 8, 16], ids=lambda n_head: f"heads of {256 // n_head}")
@pytest.mark.parametrize("dtype", LOGITS)
def test_steps_equal_the_forward_on_the_cpu(dtype, n_head):
    model, inputs = network(n_head=n_head).eval(), codes()
    expected = copy.deepcopy(model).cpu()(inputs[:, :-1].cpu(), LABELS)
    with autocast(dtype):
        forward, stepped = model(inputs[:, :-1], LABELS.to(DEVICE)).float(), steps(model, inputs)
    assert relative(forward.cpu(), expected) <= LOGITS[dtype]
    assert relative(stepped.cpu(), expected) <= LOGITS[dtype]
    if dtype != torch.float32:
        assert relative(steps(copy.deepcopy(model).to(dtype), inputs).cpu(), expected) <= LOGITS[dtype]


def loss_and_gradients(model: GPT, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    with autocast(dtype):
        loss = model.loss(codes().to(model.lm_head.weight.device), LABELS.to(model.lm_head.weight.device))
    loss.backward()
    return loss.detach().cpu(), [parameter.grad.cpu() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("dtype", "mode"), [*product(GRADIENTS, ("eager", "blocks", "all")), (torch.bfloat16, "compile")]
)
def test_gradients_are_those_of_the_cpu(dtype, mode):
    model = network("none" if mode == "compile" else mode.replace("eager", "none"))
    expected, expected_gradients = loss_and_gradients(copy.deepcopy(model).cpu(), torch.float32)
    if mode == "compile":
        model.compile()
    loss, gradients = loss_and_gradients(model, dtype)
    assert abs(loss - expected) <= LOGITS[dtype] * expected
    assert max(map(relative, gradients, expected_gradients)) <= GRADIENTS[dtype]


def test_sampled_codes_are_those_of_the_cpu():
    model, labels = network().eval(), torch.arange(64) % 10
    options = {"cfg_scale": 2.0, "top_k": 50, "top_p": 0.95, "seed": 3}
    expected = generate(copy.deepcopy(model).cpu(), labels, **options)
    assert (generate(model, labels, **options).cpu() == expected).float().mean() > 0.99


@torch.no_grad()
def test_steps_need_no_plan_for_each_number_of_keys():
    """PyTorch prefers cuDNN's attention in the forward of half precision on H100 and later; steps avoid it."""
    model, inputs = network().eval().to(torch.bfloat16), codes()
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        steps(model, inputs)
    names = [event.key for event in trace.key_averages()]
    assert any("attention" in name for name in names)
    assert not any("cudnn_attention" in name for name in names)


@pytest.mark.parametrize("num_tokens", [64, 100])
def test_captured_sequences_are_those_of_the_plain_decoder(monkeypatch, num_tokens):
    """The second length has a last graph of fewer steps."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from captured import CapturedSequence

    model, options = network(num_tokens=num_tokens).eval(), SamplingOptions(cfg_scale=2.0, top_k=50)
    captured = CapturedSequence(model, LABELS, options)
    assert bool(captured.graphs) == (DEVICE == "cuda")
    for seed in (0, 1, 0):
        expected = generate(model, LABELS, cfg_scale=2.0, top_k=50, decoder="plain", seed=seed)
        assert torch.equal(captured(seed), expected)
