"""Values of the codebook histograms."""

import torch
from torch.nn import functional as F

from aim_lightning.callbacks.logging import tensorboard


def test_nearest_cosine_is_that_of_another_code(monkeypatch):
    monkeypatch.setattr(tensorboard, "CODES_AT_A_TIME", 3)
    codes = F.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    codes[5] = codes[2]
    products = (codes @ codes.T).fill_diagonal_(-1)
    cosines = tensorboard.nearest_cosine(codes)
    assert torch.allclose(cosines, products.amax(1)) and torch.allclose(cosines[[2, 5]], torch.ones(2))
