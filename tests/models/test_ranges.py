"""Constructor arguments out of range: one line that names the argument."""

import math
from typing import Literal, get_args, get_origin

import pytest
from helpers import TINY, TINY_VQ, assert_user_error

from aim_lightning.losses import TokenizerLoss
from aim_lightning.models import AiMConfig, PatchGANConfig, VQConfig
from aim_lightning.modules.adversary import AdversarialConfig
from aim_lightning.modules.aim import AiMModule
from aim_lightning.modules.codebook import RevivalConfig
from aim_lightning.modules.optim import OptimizerConfig
from aim_lightning.modules.tokenizer import TokenizerModule
from aim_lightning.sampling import SamplingOptions
from aim_lightning.sampling.filters import Filters
from aim_lightning.sampling.guidance import guidance_scales
from aim_lightning.utils.ranges import Range

REQUIRED = {
    AiMModule: {"network": TINY, "optimizer": OptimizerConfig(), "global_batch_size": 8, "backend": "torch"},
    TokenizerModule: {
        "network": TINY_VQ, "optimizer": OptimizerConfig(), "global_batch_size": 8, "loss": TokenizerLoss(),
    },
    guidance_scales: {"num_tokens": 4, "cfg_scale": 2.0},
}  # fmt: skip
MODULES, NUMBERS = (AiMModule, TokenizerModule), {int, float, bool, tuple, Literal}
OWNERS = [
    AiMConfig, VQConfig, PatchGANConfig, TokenizerLoss, OptimizerConfig, AdversarialConfig, RevivalConfig, Filters,
    SamplingOptions, *REQUIRED,
]  # fmt: skip


CHECKED = [
    (owner, name, {get_origin(annotation) or annotation, *get_args(annotation)})
    for owner in OWNERS
    for name, annotation in (owner.__init__ if owner in MODULES else owner).__annotations__.items()
    if name != "return"
]


@pytest.mark.parametrize(("owner", "name", "types"), [case for case in CHECKED if case[2] & NUMBERS])
def test_every_number_choice_and_flag_is_checked(owner, name, types):
    wrong = [-1, math.nan, math.inf, -math.inf, "1"]
    wrong += [1.5, True] if int in types and float not in types else []
    wrong += [(), [0.5, "a"], [math.nan, 0.5]] if tuple in types else []
    for value in wrong:
        assert_user_error(rf"^\S+[. ]{name} is .*; it must be ", owner, **REQUIRED.get(owner, {}) | {name: value})


CASES = [
    (AiMConfig, "d_model", 0, "a whole number, 1 or more$"),
    (AiMConfig, "token_dropout", 1.0, "from 0 to below 1$"),
    (AiMConfig, "position_embedding", 1, "true or false$"),
    (AiMConfig, "headdim", 50, None),
    (AiMConfig, "adaln", "rows", "none, layer or group$"),
    (VQConfig, "channel_multipliers", (1, 0), "one or more items, each a whole number, 1 or more$"),
    (VQConfig, "image_size", 100, None),
    (VQConfig, "norm_groups", 24, None),
    (PatchGANConfig, "num_layers", 0, "1 or more"),
    (TokenizerLoss, "entropy_temperature", 0, "above 0$"),
    (TokenizerLoss, "reconstruction", "l3", "l1 or l2$"),
    (TokenizerLoss, "perceptual_weight", 1.0, None),
    (OptimizerConfig, "base_learning_rate", 0, "above 0$"),
    (OptimizerConfig, "betas", (0.9, 1.0), "2 items, each from 0 to below 1$"),
    (OptimizerConfig, "betas", (0.9,), "2 items"),
    (OptimizerConfig, "final_fraction", 1.1, "from 0 to 1$"),
    (AdversarialConfig, "gradient_clip", -1, "0 or more, or null$"),
    (AiMModule, "label_dropout", 1.1, "from 0 to 1$"),
    (AiMModule, "global_batch_size", 0, "1 or more"),
    (TokenizerModule, "global_batch_size", 0, "1 or more"),
    (SamplingOptions, "batch_size", 0, "a whole number, 1 or more, or auto$"),
    (SamplingOptions, "cfg_interval", [0.6, 0.4], None),
    (SamplingOptions, "cfg_power", 0, "above 0"),
    (SamplingOptions, "position_offset", 2, "from 0 to 1"),
    (SamplingOptions, "top_p", 0, "above 0 and at most 1$"),
    (SamplingOptions, "temperature", 0, "1e-06 or more"),
]


@pytest.mark.parametrize(("owner", "name", "value", "limits"), CASES)
def test_limits_are_named(owner, name, value, limits):
    options = REQUIRED.get(owner, {}) | {name: value}
    assert_user_error(f"{name} is .* must be .*{limits}" if limits else name, owner, **options)


def test_values_at_the_limits_are_valid():
    assert AiMConfig(d_intermediate=0, token_dropout=0).modulation_rows == 3
    assert VQConfig(channel_multipliers=[1, 2]).channel_multipliers == (1, 2)
    OptimizerConfig(betas=(0.0, 0.0), weight_decay=0.0, final_fraction=1.0)
    RevivalConfig(until_step=None), AdversarialConfig(gradient_clip=None, weight=0, start_step=0)
    for share in (0, 1):
        AiMModule(**REQUIRED[AiMModule], label_dropout=share)
    assert SamplingOptions(cfg_scale=2, cfg_interval=[0, 1], top_p=1, batch_size="auto").options()["cfg_scale"] == 2


def test_a_range_contains_its_ends_unless_they_are_excluded():
    assert [Range(0, 1).contains(value) for value in (-0.1, 0, 1, 1.1)] == [False, True, True, False]
    assert not Range(0, 1, above=True).contains(0) and not Range(0, 1, below=True).contains(1)
    assert Range(1).contains(10**400) and not Range().contains(math.inf) and not Range().contains(math.nan)
