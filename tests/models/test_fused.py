"""The fused training path: agreement with float64 in Triton's interpreter, and refusals."""

import pytest
import torch
from helpers import TINY, script_output

from aim_lightning.models import AiM
from aim_lightning.models.aim.backends import choose
from aim_lightning.utils.errors import UserError

fused_stack = pytest.importorskip("aim_lightning.models.aim.fused.stack", reason="Triton is not installed")
CASES = [
    "layer",
    "one code",
    "7 codes, group",
    "block",
    "block and one, no adaLN, MLP",
    "odd sizes",
    "odd heads, MLP",
    "three blocks, wide state",
    "short convolution",
    "wide state, three taps",
    "extreme",
]


@pytest.fixture(scope="module")
def differences() -> dict:
    """Return the relative differences of the kernels in Triton's interpreter."""
    return script_output("models/fused_on_cpu.py", timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_float64(differences, case):
    result = differences[case]
    margin = 1e-5 if case == "extreme" else 0  # logarithms of decays reach hundreds
    assert result["loss"] <= 2e-6
    assert result["gradients"] <= 5e-6 + margin
    # A_log and dt_bias sum over complete sequences and all images.
    assert result["decay"] <= 2e-5 + margin


@pytest.mark.long
@pytest.mark.slow
def test_chosen_and_random_sizes_equal_float64():
    lengths = script_output("models/fused_sizes_on_cpu.py", timeout=600)["lengths"]
    assert len(lengths) == 13 and {7, 63, 255, 256, 257, 576} <= set(lengths), lengths


@pytest.mark.slow
def test_gradient_is_the_slope_of_the_loss(differences):
    assert differences["directional"] <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_group", "tiny_adaln"])
def test_published_logits(differences, name):
    assert differences["published"][name] <= 1e-5


@pytest.mark.slow
def test_accumulated_gradients_repeat_to_the_bit(differences):
    assert differences["repeated"] is True


@pytest.mark.slow
def test_activation_checkpointing_changes_no_bit(differences):
    assert differences["recomputed"] is True


def test_a_cpu_is_refused_and_auto_falls_back():
    model = AiM(TINY, "triton")
    with pytest.raises(UserError, match="backend triton cannot be used: it needs an NVIDIA GPU"):
        model(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    chosen = choose.choose_backend("auto", TINY, torch.device("cpu"), torch.float32)
    assert chosen.name == "torch"


@pytest.mark.parametrize(
    ("dtype", "dropout", "training", "reason"),
    [
        (torch.bfloat16, 0.0, True, None),
        (torch.float32, 0.0, True, None),
        (torch.bfloat16, 0.1, False, None),
        (torch.bfloat16, 0.1, True, "no dropout"),
        (torch.float16, 0.0, True, "not in torch.float16"),
        (torch.float64, 0.0, False, "not in torch.float64"),
    ],
)
def test_calls_that_another_backend_computes(dtype, dropout, training, reason):
    from dataclasses import replace

    from aim_lightning.models.aim.backends.fused import _call_refusal

    refusal = _call_refusal(replace(TINY, mixer_dropout=dropout), dtype, training)
    assert refusal is None if reason is None else reason in refusal


def test_loss_is_the_mean_cross_entropy_of_the_logits():
    torch.manual_seed(0)
    model = AiM(TINY, "torch")
    codes = torch.randint(TINY.vocab_size, (3, TINY.num_tokens))
    labels = torch.tensor([0, 1, model.null_class])
    logits = model(codes[:, :-1], labels)
    chosen = logits.log_softmax(-1).gather(-1, codes[..., None])
    assert torch.allclose(model.loss(codes, labels), -chosen.mean(), atol=1e-6)
