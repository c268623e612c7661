"""Starting from given weights."""

from types import SimpleNamespace

import pytest
import torch
from helpers import TINY_VQ

from aim_lightning.cli.initial import start_from
from aim_lightning.models import VQModel
from aim_lightning.utils.errors import UserError


def test_a_published_file_is_loaded_strictly(tmp_path):
    torch.manual_seed(0)
    published, network = VQModel(TINY_VQ), VQModel(TINY_VQ)
    file = tmp_path / "vq.pt"
    torch.save({"model": published.state_dict(), "steps": 3}, file)
    start_from(SimpleNamespace(network=network), file)
    assert network.weights_hash == published.weights_hash
    weights = published.state_dict()
    weights["encoder.more"] = weights.pop("quant_conv.bias")
    torch.save({"model": weights}, file)
    with pytest.raises(UserError, match=r"missing: quant_conv.bias; surplus: encoder.more"):
        start_from(SimpleNamespace(network=network), file)


def test_what_is_no_tokenizer_is_one_line(tmp_path):
    network = VQModel(TINY_VQ)
    with pytest.raises(UserError, match="does not exist"):
        start_from(SimpleNamespace(network=network), tmp_path / "vq.pt")
    torch.save({"weights": {}}, tmp_path / "vq.pt")
    with pytest.raises(UserError, match=r"holds no|tensor"):
        start_from(SimpleNamespace(network=network), tmp_path / "vq.pt")
    (tmp_path / "vq.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="damaged"):
        start_from(SimpleNamespace(network=network), tmp_path / "vq.pt")
