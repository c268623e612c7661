"""The embedding with a deterministic gradient equals PyTorch's, and leaves PyTorch's mode as it was."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import deterministic
from torch.utils._python_dispatch import TorchDispatchMode

from aim_lightning.models import GPT, AiM, AiMConfig, GPTConfig
from aim_lightning.models.embedding import DeterministicEmbedding

SIZES = {"d_model": 32, "n_layer": 1, "vocab_size": 16, "num_classes": 3, "num_tokens": 9}
BACKWARD = torch.ops.aten.embedding_dense_backward.default


class Modes(TorchDispatchMode):
    """Record PyTorch's mode at every gradient of an embedding, which fails on request."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails, self.seen = fails, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is BACKWARD:
            self.seen.append((torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory))
            if self.fails:
                raise MemoryError
        return function(*args, **kwargs or {})


@pytest.fixture(params=["default", "warn", "error"])
def _mode(request):
    torch.set_deterministic_debug_mode(request.param)
    yield
    torch.set_deterministic_debug_mode("default")


def make(dtype: torch.dtype = torch.float32) -> DeterministicEmbedding:
    torch.manual_seed(0)
    return DeterministicEmbedding(7, 5).to(dtype)


@pytest.mark.parametrize("shape", [(), (4,), (6, 300), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_and_gradient_are_those_of_pytorch(shape, dtype):
    embedding, indices = make(dtype), torch.randint(0, 7, shape)
    weight = embedding.weight.detach().clone().requires_grad_()
    d_out = torch.randn(*shape, 5, dtype=dtype)
    for _ in range(2):  # the second gradient is added to the first
        out, expected = embedding(indices), F.embedding(indices, weight)
        out.backward(d_out)
        expected.backward(d_out)
        assert torch.equal(out, expected) and torch.equal(embedding.weight.grad, weight.grad)
    assert embedding.weight.grad.dtype == dtype


def test_two_uses_in_one_graph_and_a_second_derivative():
    embedding, indices = make(torch.float64), torch.tensor([0, 3, 3, 6])
    weight = embedding.weight.detach().clone().requires_grad_()

    def loss(rows):
        return (rows(indices).prod(1) * rows(indices.flip(0)).prod(1)).sum()

    def derivatives(weight, rows):
        (first,) = torch.autograd.grad(loss(rows), weight, create_graph=True)
        return first, torch.autograd.grad(first.square().sum(), weight)[0]

    results = derivatives(embedding.weight, embedding), derivatives(weight, lambda i: F.embedding(i, weight))
    assert all(torch.equal(value, other) for value, other in zip(*results, strict=True))


@pytest.mark.usefixtures("_mode")
def test_the_mode_is_deterministic_in_the_backward_alone():
    before = (torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory)
    with Modes() as modes:
        make()(torch.tensor([1, 1])).sum().backward()
    assert modes.seen == [(1, False)]
    assert (torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory) == before


@pytest.mark.usefixtures("_mode")
def test_an_error_in_the_backward_restores_the_mode():
    before = (torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory)
    with pytest.raises(MemoryError), Modes(fails=True):
        make()(torch.tensor([1, 1])).sum().backward()
    assert (torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory) == before


@pytest.mark.parametrize(("network", "config", "embeddings"), [
    (AiM, AiMConfig(**SIZES, d_state=8, headdim=16), 3), (GPT, GPTConfig(**SIZES, n_head=2), 2),
], ids=["AiM", "GPT"])  # fmt: skip
def test_codes_and_classes_of_both_networks_use_it(network, config, embeddings):
    with Modes() as modes:
        network(config, "torch").loss(torch.zeros(2, 9, dtype=torch.int64), torch.tensor([0, 3])).backward()
    assert modes.seen.count((1, False)) == 2  # AiM's third embedding is that of positions
    assert len(modes.seen) == embeddings


def test_state_dict_without_gradients_and_options():
    embedding = make()
    assert list(embedding.state_dict()) == list(nn.Embedding(7, 5).state_dict()) == ["weight"]
    with torch.no_grad():
        assert torch.equal(embedding(torch.tensor([2, 0])), embedding.weight[[2, 0]])
    assert not embedding.requires_grad_(False)(torch.tensor([2])).requires_grad
    with pytest.raises(TypeError):
        DeterministicEmbedding(7, 5, padding_idx=0)


def test_it_works_under_torch_compile():
    embedding, indices = make(), torch.tensor([[1, 2], [2, 2]])
    torch.compile(embedding, backend="aot_eager", fullgraph=True)(indices).square().sum().backward()
    gradient, embedding.weight.grad = embedding.weight.grad, None
    embedding(indices).square().sum().backward()
    assert torch.allclose(gradient, embedding.weight.grad)
