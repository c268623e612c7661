"""The fast decoder's kernels and captured graph on an NVIDIA GPU."""

import pytest
import torch
from gpu.tolerances import LOGITS
from helpers import relative

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.sampling import generate
from aim_lightning.sampling.fast import decoder_for
from aim_lightning.sampling.filters import guide, keep_top_k, keep_top_p
from aim_lightning.utils.random import hash_uniform

pytestmark = pytest.mark.gpu
LABELS = torch.tensor([0, 3, 9, 9, 1])
EDGE = 1e-5  # probability within which rounding may decide a draw
OPTIONS = [{"top_k": 1}, {}, {"top_k": 100, "temperature": 1.3}, {"top_k": 600, "top_p": 0.9}]


@pytest.fixture(scope="module", autouse=True)
def _exact_products():
    if not torch.cuda.is_available():
        pytest.fail("no GPU that torch can use; these tests are for a machine that has one")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def network(adaln: str, seed: int = 0, num_tokens: int = 64, **sizes) -> AiM:
    """A network of the presets' head and state widths whose codes vary."""
    torch.manual_seed(seed)
    config = AiMConfig(
        d_model=256,
        n_layer=4,
        vocab_size=2000,
        num_classes=10,
        num_tokens=num_tokens,
        adaln=adaln,
        num_groups=2,
        **sizes,
    )
    model = AiM(config, backend="torch")
    for name, parameter in model.named_parameters():
        if "adaLN_modulation" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    torch.nn.init.normal_(model.backbone.embeddings.word_embeddings.weight, std=0.03)
    for layer in model.backbone.layers:
        torch.nn.init.normal_(layer.mixer.out_proj.weight, std=0.1)
    return model.cuda().eval()


def assert_same(model: AiM, labels: torch.Tensor = LABELS, **options) -> None:
    """The fast decoder in float32 draws the plain one's codes, up to where a draw falls on the edge of two codes."""
    plain = generate(model, labels, decoder="plain", seed=3, **options)
    fast = generate(model, labels, decoder="fast", precision="float32", seed=3, **options)
    if options.get("top_k") != 1:
        assert len(plain.unique()) > 10
    for image in (plain != fast).any(dim=1).nonzero().flatten().tolist():
        step = int((plain[image] != fast[image]).nonzero()[0])
        margin = draw_margin(model, labels[image], plain[image, :step], image, step, fast[image, step], **options)
        print(f"image {image} differs from step {step} on, margin {margin:.1e}, {options}")
        assert margin <= EDGE


def draw_margin(model, label, codes_L, image, step, other, cfg_scale=1.0, temperature=1.0, top_k=0, top_p=1.0, **_):
    """How far the step's random number lies from where the other code would have been drawn, in probability."""
    null = torch.full_like(label, model.null_class)
    with torch.no_grad():
        logits = model(codes_L.expand(2, -1), torch.stack((label, null)).cuda())[:, -1].float()
    row = guide(logits[:1], logits[1:], cfg_scale) / temperature
    if top_k == 1:
        return float((row.max() - row[0, other]) / row.abs().max())
    cumulative = keep_top_p(keep_top_k(row, top_k), top_p).double().softmax(-1).cumsum(-1)[0]
    uniform = float(hash_uniform("sample", 3, torch.tensor(image), step))
    below = float(cumulative[other - 1]) if other else 0.0
    return max(below - uniform, uniform - float(cumulative[other]), 0.0)


@pytest.mark.parametrize("adaln", ["none", "layer", "group"])
@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
def test_float32_codes_equal_the_plain_decoder(adaln, cfg_scale):
    model = network(adaln)
    for options in OPTIONS:
        assert_same(model, cfg_scale=cfg_scale, **options)


@pytest.mark.parametrize("tokens", [576, 1024])
def test_larger_grids(tokens):
    assert_same(network("group", num_tokens=tokens), LABELS[:2], cfg_scale=2.0)


def test_a_captured_graph_serves_no_stale_state():
    """Shapes, models, options and weights by turns."""
    first, second = network("group"), network("layer", seed=1)
    for turn in range(2):
        for model in (first, second):
            for labels in (LABELS, LABELS[:2]):
                assert_same(model, labels, cfg_scale=1.5 + turn, top_p=0.95)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.02)


def test_bf16_logits_stay_near_a_float32_state_at_every_step():
    """The bf16 decoder's codes, replayed through teacher forcing in float32."""
    model, seen = network("group", num_tokens=256), []
    fast = decoder_for(model, len(LABELS), False, torch.bfloat16)
    codes = generate(
        model, LABELS, decoder="fast", seed=1, on_step=lambda *_: seen.append(fast.buffers.logits_MV.float().clone())
    )
    with torch.no_grad():
        exact = model(codes[:, :-1], LABELS.cuda())
    worst = max(relative(seen[t], exact[:, t]) for t in range(256))
    print(f"largest relative difference of bf16 logits at any step {worst:.2e}")
    assert worst <= LOGITS[torch.bfloat16]


def test_a_call_is_repeatable():
    model = network("layer")
    calls = [generate(model, LABELS, cfg_scale=2.0, top_k=100, seed=7, decoder="fast") for _ in range(2)]
    assert torch.equal(*calls)
