"""A CUDA graph of the micro-step gives the numbers of the eager step, on an NVIDIA GPU."""

import pytest
import torch
from gpu.test_fused_gpu import network
from integration.tiny import Experiment, scalars, write_experiment

from aim_lightning.modules.graphed_loss import GraphedLoss, refusal

pytestmark = pytest.mark.gpu
STEPS = 3


def train(graphed: bool, accumulate: int, images: int = 3) -> dict[str, list[torch.Tensor]]:
    """Return losses, weights and last gradients of some steps of AdamW in bf16 autocast."""
    model = network("triton", adaln="group", num_groups=2)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    generator, graph, losses = torch.Generator().manual_seed(1), GraphedLoss(model, accumulate), []
    for _ in range(STEPS):
        for micro_batch in range(accumulate):
            codes = torch.randint(512, (images, 256), generator=generator).cuda()
            labels = torch.randint(11, (images,), generator=generator).cuda()
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = graph(codes, labels, micro_batch == 0) if graphed else model.loss(codes, labels)
            losses.append(loss.detach().clone())
            if micro_batch == 0:  # where Lightning does it: between forward and backward
                optimizer.zero_grad()
            (loss / accumulate).backward()
        optimizer.step()
    weights = [parameter for parameter in model.parameters() if parameter.grad is not None]
    return {"losses": losses, "weights": weights, "gradients": [weight.grad for weight in weights]}


def assert_equal_bits(result: dict[str, list[torch.Tensor]], expected: dict[str, list[torch.Tensor]]) -> None:
    for name, values in expected.items():
        assert all(torch.equal(one, other) for one, other in zip(values, result[name], strict=True)), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_losses_weights_and_gradients_are_those_of_the_eager_step(accumulate):
    assert_equal_bits(train(True, accumulate), train(False, accumulate))


@pytest.mark.parametrize("images", [64, 256])
def test_steps_of_many_images_repeat_to_the_bit(images):
    """PyTorch's own gradient of an embedding of 512 codes adds atomically here."""
    expected = train(False, 1, images)
    for graphed in (False, True, True):
        assert_equal_bits(train(graphed, 1, images), expected)


def test_fit_gives_the_same_curve(tmp_path, capsys):
    experiment = Experiment(write_experiment(tmp_path))
    options = ["--trainer.accelerator", "gpu", "--trainer.precision", "bf16-mixed", "--trainer.max_steps", "9"]
    options += [f"--model.network.{name}_dropout=0" for name in ("token", "mixer", "mlp")]
    runs = [experiment.fit(str(use), *options, "--model.cuda_graph", use) for use in ("true", "false")]
    assert "cuda_graph: in use" in capsys.readouterr().out
    graphed, eager = (scalars(run)["train/loss"] for run in runs)
    assert graphed == eager


def test_what_a_graph_cannot_take_is_refused():
    model = network("triton", adaln="layer")
    assert refusal(model, 64, True, "bf16-mixed") is None
    assert "64 images" in refusal(model, 65, True, "bf16-mixed")
    assert "several processes" in refusal(model, 64, False, "bf16-mixed")
    assert "fp16" in refusal(model, 64, True, "16-mixed")
    assert "not triton" in refusal(network("torch", adaln="layer"), 64, True, "bf16-mixed")
    assert "dropout" in refusal(network("triton", adaln="layer", token_dropout=0.1), 64, True, "bf16-mixed")
    with torch.autograd.detect_anomaly():
        assert "detect_anomaly" in refusal(model, 64, True, "bf16-mixed")
