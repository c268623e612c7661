"""Gradient of the embedding on an NVIDIA GPU: equal bits where PyTorch's own adds atomically."""

import pytest
import torch
from helpers import relative
from torch.nn import functional as F

from aim_lightning.models.embedding import DeterministicEmbedding

pytestmark = pytest.mark.gpu
# PyTorch 2.11 and newer add atomically with fewer than 4 rows per multiprocessor and more than 30 indices per row.
SMALL = {"codes": (512, 256 * 255), "few codes": (256, 32 * 255), "classes": (11, 4096)}
LARGE = {"published codes": (16384, 64 * 255), "few indices": (512, 33 * 255), "very few indices": (512, 3 * 255)}


def gradient(embed, weight: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a table for fixed random gradients of the rows."""
    generator = torch.Generator(weight.device).manual_seed(1)
    d_out = torch.randn(*indices.shape, weight.shape[1], generator=generator, device=weight.device, dtype=weight.dtype)
    return torch.autograd.grad(embed(indices), weight, d_out)[0]


def make(rows: int, count: int, dtype: torch.dtype) -> tuple[DeterministicEmbedding, torch.Tensor]:
    """Return an embedding and indices, half of which are one code."""
    torch.manual_seed(0)
    indices = torch.randint(rows, (count,))
    indices[::2] = rows // 2
    return DeterministicEmbedding(rows, 256).to("cuda", dtype), indices.cuda()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SMALL)
def test_small_tables_repeat_to_the_bit(size, dtype):
    embedding, indices = make(*SMALL[size], dtype)
    expected = gradient(embedding, embedding.weight, indices)
    for _ in range(10):
        assert torch.equal(gradient(embedding, embedding.weight, indices), expected)
    if dtype == torch.float32:
        exact = torch.zeros(expected.shape, dtype=torch.float64, device="cuda")
        generator = torch.Generator("cuda").manual_seed(1)
        d_out = torch.randn(*indices.shape, 256, generator=generator, device="cuda")
        assert relative(expected, exact.index_add(0, indices, d_out.double()).float()) <= 1e-5


@pytest.mark.parametrize("size", LARGE)
def test_other_tables_have_the_gradient_of_pytorch(size):
    """The kernels are the same, so the bits are too."""
    embedding, indices = make(*LARGE[size], torch.float32)
    expected = gradient(lambda i: F.embedding(i, embedding.weight), embedding.weight, indices)
    assert torch.equal(gradient(embedding, embedding.weight, indices), expected)
    assert torch.get_deterministic_debug_mode() == 0


def test_it_can_be_captured_and_waits_for_nothing():
    embedding, indices = make(*SMALL["codes"], torch.float32)
    expected = gradient(embedding, embedding.weight, indices)
    d_out = torch.randn(*indices.shape, 256, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(embedding(indices), embedding.weight, d_out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        (captured,) = torch.autograd.grad(embedding(indices), embedding.weight, d_out)
    for _ in range(5):
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, expected)
