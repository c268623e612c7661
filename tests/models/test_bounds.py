"""Values that no network can have, each one line that names the field."""

import math

import pytest
from helpers import assert_user_error

from aim_lightning.models import AiMConfig, VQConfig
from aim_lightning.utils.errors import UserError

SIZES = {
    AiMConfig: (
        "d_model", "n_layer", "vocab_size", "num_classes", "num_tokens", "num_groups", "d_state", "d_conv", "expand",
        "headdim", "chunk_size",
    ),
    VQConfig: (
        "image_size", "codebook_size", "codebook_dim", "base_channels", "num_res_blocks", "z_channels", "norm_groups",
        "usage_window",
    ),
}  # fmt: skip
DROPOUTS = {AiMConfig: ("token_dropout", "mixer_dropout", "mlp_dropout"), VQConfig: ("dropout",)}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in SIZES.items() for name in names])
@pytest.mark.parametrize("value", [0, -1, 2.0, "4", True, None])
def test_sizes_are_integers_of_at_least_one(kind, name, value):
    assert_user_error(rf"^{kind.__name__}\.{name} is .* whole number, at least 1$", kind, **{name: value})


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in DROPOUTS.items() for name in names])
@pytest.mark.parametrize("value", [1.0, -0.1, math.nan, "0.1", True])
def test_dropouts_are_below_one(kind, name, value):
    assert_user_error(rf"^{kind.__name__}\.{name} is .* in \[0, 1\)$", kind, **{name: value})
    kind(**{name: 0})


@pytest.mark.parametrize("value", [-1, 1.5])
def test_an_mlp_may_be_absent_but_not_negative(value):
    assert AiMConfig(d_intermediate=0).modulation_rows == 3
    assert_user_error(r"d_intermediate is .* at least 0", AiMConfig, d_intermediate=value)


def test_fields_of_other_kinds():
    assert_user_error("position_embedding is 1; use true or false", AiMConfig, position_embedding=1)
    for levels in ((), (1, 0), (1, 2.0), 4, "12", None):
        with pytest.raises(UserError, match=r"channel_multipliers is .* one positive whole number per level"):
            VQConfig(channel_multipliers=levels)
    assert VQConfig(channel_multipliers=[1, 2]).channel_multipliers == (1, 2)
