"""Embedding whose gradient repeats to the bit on GPUs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import deterministic


class DeterministicEmbedding(nn.Embedding):
    """Embed indices; on GPUs the gradient of the table adds in a fixed order.

    PyTorch from 2.11 on adds atomically for small tables and many indices. Its deterministic mode selects the kernels
    that it uses for all other sizes. They run in CUDA graphs and without a host synchronisation.
    torch.compile replaces the operator, so compiled code has Inductor's order.

    Args:
        num_embeddings: rows of the table.
        embedding_dim: width of a row.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__(num_embeddings, embedding_dim)  # nn.Embedding's options are not supported

    def forward(self, indices: Tensor) -> Tensor:
        """Return the rows of int64 indices; adds the last dimension."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return super().forward(indices)
        return _Embed.apply(self.weight, indices)


class _Embed(torch.autograd.Function):
    """Rows of (weight (V, D), indices of any shape), with the gradient in a fixed order."""

    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.rows = weight_VD.shape[0]
        return F.embedding(indices, weight_VD)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple:
        (indices,) = ctx.saved_tensors
        with _deterministic_mode():
            # No padding index, no scaling by frequency.
            d_weight_VD = torch.ops.aten.embedding_dense_backward(d_out, indices, ctx.rows, -1, False)
        return d_weight_VD, None


@contextmanager
def _deterministic_mode() -> Iterator[None]:
    """Select PyTorch's deterministic kernels and restore the previous mode, also after an error.

    The mode belongs to the process. Other threads see it for the time of one launch: it only warns and fills no memory.
    """
    mode, fill = torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory
    try:
        deterministic.fill_uninitialized_memory = False  # a kernel per temporary tensor
        # Not `use_deterministic_algorithms`, which imports Inductor and changes its configuration.
        torch.set_deterministic_debug_mode("warn")
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        deterministic.fill_uninitialized_memory = fill
