"""Precision of products inside and after the context, by torch's older and newer names."""

import pytest
import torch

from aim_lightning.utils.precision import exact_products


@pytest.fixture(autouse=True)
def _restore():
    yield
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")


def newer() -> tuple[str, str]:
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_settings_by_older_names_are_restored(precision):
    torch.set_float32_matmul_precision(precision)
    with exact_products():
        assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (False, "highest")
        assert torch.backends.cudnn.deterministic and newer() == ("ieee", "ieee")
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (True, precision)
    assert not torch.backends.cudnn.deterministic


@pytest.mark.parametrize(("conv", "matmul"), [("ieee", "tf32"), ("tf32", "tf32"), ("ieee", "ieee")])
def test_settings_by_newer_names_are_restored_without_an_error(conv, matmul):
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = conv, matmul
    with exact_products(True):
        assert newer() == ("tf32", "tf32")
    with exact_products(True, in_matmul=False):
        assert newer() == ("tf32", "ieee")
        assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (True, "highest")
    assert newer() == (conv, matmul)


def test_a_global_precision_has_no_effect_inside():
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.fp32_precision = "tf32"
    try:
        with exact_products():
            assert newer() == ("ieee", "ieee")
        assert torch.backends.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision = "none"


def test_everything_is_restored_after_an_error():
    with pytest.raises(ValueError), exact_products():
        raise ValueError
    assert torch.backends.cudnn.allow_tf32 and not torch.backends.cudnn.deterministic
