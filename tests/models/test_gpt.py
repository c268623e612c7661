"""The transformer baseline against an independent computation, and its decoding steps against its forward."""

import math

import pytest
import torch
from helpers import assert_user_error, random_weights, relative
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from aim_lightning.models import GPT, GPTConfig

SIZES = {"d_model": 32, "n_layer": 2, "n_head": 2, "vocab_size": 16, "num_classes": 3, "num_tokens": 9}
TINY_GPT = GPTConfig(**SIZES)
LABELS = torch.tensor([0, 1, 2, 3])


def make(**options) -> GPT:
    torch.manual_seed(0)
    return random_weights(GPT(GPTConfig(**SIZES | options)).eval(), vectors=True)


def make_codes(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 16, (4, 9), generator=torch.Generator().manual_seed(seed))


def steps(model: GPT, codes: torch.Tensor, offset: int = 0) -> torch.Tensor:
    """Return the logits of every decoding step for these codes."""
    condition, states = model.condition(LABELS), model.new_states(len(codes))
    inputs = [(None, -1)] + [(codes[:, t], t + offset) for t in range(codes.shape[1] - 1)]
    return torch.stack([model.step(code, position, condition, states) for code, position in inputs], dim=1)


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def reference(model: GPT, codes: torch.Tensor) -> torch.Tensor:
    """Compute the logits of all positions from the weights alone, one query at a time, with complex rotations."""
    w, config = {name: value.double() for name, value in model.state_dict().items()}, model.config
    width = config.d_model // config.n_head
    turns = [torch.zeros(width // 2)]
    for index in range(codes.shape[1] - 1):
        row, column = divmod(index, 3)
        frequency = [10000 ** (-4 * k / width) for k in range(width // 4)]
        turns.append(torch.tensor([row * f for f in frequency] + [column * f for f in frequency]))
    rotation = torch.polar(torch.ones(len(turns), width // 2).double(), torch.stack(turns).double())
    x = torch.cat((w["backbone.cls_embed.embedding_table.weight"][LABELS][:, None],
                   w["backbone.embeddings.weight"][codes[:, :-1]]), dim=1)  # fmt: skip
    for layer in range(config.n_layer):
        at = f"backbone.layers.{layer}."
        qkv = norm(x, w[at + "attention_norm.weight"]) @ w[at + "attention.wqkv.weight"].T
        q, k, v = qkv.unflatten(-1, (3, config.n_head, width)).unbind(2)
        q, k = (torch.view_as_real(torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous()) * rotation[:, None])
                .flatten(-2) for part in (q, k))  # fmt: skip
        out = torch.zeros_like(q)
        for t in range(q.shape[1]):
            shares = torch.einsum("bhp,bshp->bhs", q[:, t], k[:, : t + 1]).div(math.sqrt(width)).softmax(-1)
            out[:, t] = torch.einsum("bhs,bshp->bhp", shares, v[:, : t + 1])
        x = x + out.flatten(2) @ w[at + "attention.wo.weight"].T
        h = norm(x, w[at + "ffn_norm.weight"])
        gate, value = h @ w[at + "feed_forward.w1.weight"].T, h @ w[at + "feed_forward.w3.weight"].T
        x = x + (gate * gate.sigmoid() * value) @ w[at + "feed_forward.w2.weight"].T
    return norm(x, w["backbone.norm_f.weight"]) @ w["lm_head.weight"].T


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_an_independent_computation(tied):
    model, codes = make(tie_embeddings=tied), make_codes()
    assert relative(model(codes[:, :-1], LABELS).double(), reference(model, codes)) < 1e-5
    tables = (model.lm_head.weight, model.backbone.embeddings.weight)
    assert (tables[0] is tables[1]) == tied


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_step_equals_forward_at_every_position(dtype):
    model, codes = make().to(dtype), make_codes()
    logits = steps(model, codes)
    assert logits.dtype == dtype
    assert relative(logits, model(codes[:, :-1], LABELS)) <= {torch.float64: 1e-14, torch.float32: 1e-5}.get(
        dtype, 2e-2
    )


@torch.no_grad()
def test_step_works_under_autocast():
    model, codes = make(), make_codes()
    with torch.autocast("cpu", torch.bfloat16):
        logits = steps(model, codes)
    assert relative(logits.float(), model(codes[:, :-1], LABELS)) < 5e-2


@torch.no_grad()
def test_a_code_depends_on_class_and_earlier_codes_only():
    model, codes = make(), make_codes()
    logits = model(codes, LABELS)
    assert logits.shape == (4, 10, 16)
    for t in range(9):
        changed = codes.clone()
        changed[:, t] = (codes[:, t] + 1) % 16
        difference = (model(changed, LABELS) - logits).abs().amax((0, 2))
        assert not difference[: t + 1].any() and difference[t + 1 :].all()
    assert (model(codes, LABELS.flip(0)) - logits).abs().amax((0, 2)).all()


@torch.no_grad()
def test_codes_have_positions_in_two_dimensions():
    """With equal codes everywhere, only the positions differ; a shift of one row is not a shift of three columns."""
    model = make(n_layer=1)
    logits = model(torch.zeros(4, 9, dtype=torch.int64), LABELS)
    assert (logits[:, 2:] - logits[:, 1:-1]).abs().amax((0, 2)).min() > 1e-4
    assert relative(steps(model, make_codes(), offset=1), steps(model, make_codes())) > 1e-3


def test_a_new_network_starts_at_the_uniform_loss():
    torch.manual_seed(0)
    assert GPT(TINY_GPT).loss(make_codes(), LABELS).item() == pytest.approx(math.log(16), rel=1e-6)


@pytest.mark.parametrize("mode", ["blocks", "all"])
def test_recomputation_changes_no_gradient(mode):
    gradients = []
    for checkpointing in ("none", mode):
        torch.manual_seed(1)
        model = random_weights(GPT(TINY_GPT, gradient_checkpointing=checkpointing))
        torch.manual_seed(2)  # of dropout
        model.loss(make_codes(), LABELS).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_flops_are_those_that_pytorch_counts():
    model, codes = make(), make_codes()
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():  # others are not counted on a CPU
        model.loss(codes, LABELS)
    config = model.config
    # PyTorch counts complete attention matrices; half of their entries are visible.
    hidden = 2 * config.n_layer * config.d_model * config.num_tokens * (config.num_tokens - 1)
    assert 3 * (counter.get_total_flops() / len(codes) - hidden) == pytest.approx(model.flops_per_image())


@pytest.mark.parametrize(
    ("d_model", "n_layer", "n_head", "parameters"),
    [(768, 12, 12, 110_888_448), (1024, 24, 16, 342_910_976), (1280, 36, 20, 774_699_520)],
)
def test_sizes_of_llamagen_have_the_published_numbers_of_parameters(d_model, n_layer, n_head, parameters):
    """The paper lists 111M, 343M and 775M."""
    with torch.device("meta"):
        model = GPT(GPTConfig(d_model, n_layer, n_head))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_state_bytes_are_those_of_the_caches():
    model = make()
    states = model.new_states(4)
    with torch.no_grad():
        model.step(None, -1, model.condition(LABELS), states)
    assert sum(state.memory.nbytes for state in states) == 4 * model.state_bytes()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"d_model": 36}, r"d_model is 36; it must be a multiple of 4 \* n_head = 8"),
        ({"num_tokens": 8}, "num_tokens is 8; it must be a square number"),
        ({"mlp_dropout": 1}, "mlp_dropout is 1; it must be from 0 to below 1"),
        ({"n_head": 0}, "n_head is 0; it must be a whole number"),
    ],
)
def test_impossible_sizes_are_refused(options, match):
    assert_user_error(match, lambda: GPTConfig(**SIZES | options))


def test_hidden_width_is_rounded_as_in_llamagen():
    assert [GPTConfig(d_model=d, n_head=4).mlp_width for d in (768, 1024, 1280)] == [2048, 2816, 3584]
    assert make(d_intermediate=24).backbone.layers[0].feed_forward.w1.weight.shape == (24, 32)


def test_loss_is_the_cross_entropy_of_all_codes():
    model, codes = make(), make_codes()
    logits = model(codes, LABELS)[:, :-1]
    assert model.loss(codes, LABELS).item() == pytest.approx(
        F.cross_entropy(logits.flatten(0, 1), codes.flatten()).item(), rel=1e-6
    )
