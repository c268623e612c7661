"""The same promises on an NVIDIA GPU: `make test-gpu` in an environment with torch for CUDA."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from helpers import fixture, published_aim, published_vq8, relative
from integration.tiny import scalars, write_experiment

from aim_lightning.sampling import generate

pytestmark = pytest.mark.gpu
# Largest relative difference to the float32 result of the published code, by dtype.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


@pytest.fixture(scope="module", autouse=True)
def _exact_products():
    if not torch.cuda.is_available():
        pytest.fail("no GPU that torch can use; these tests are for a machine that has one")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["tiny_group", "tiny_adaln"])
def test_logits(name, dtype):
    model, (_, data) = published_aim(name).cuda(), fixture(name)
    codes, labels = data["tokens"].cuda(), data["labels"][:, 0].cuda()
    with torch.no_grad(), torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        logits = model(codes[:, :-1], labels).float().cpu()
    assert relative(logits[:, data["logit_positions"]], data["logits"]) <= TOLERANCE[dtype]


@pytest.mark.parametrize("cfg_scale", [1, 3])
def test_greedy_codes(cfg_scale):
    model, (_, data) = published_aim("tiny_group").cuda(), fixture("tiny_group")
    codes = generate(model, data["labels"][:, 0], cfg_scale=cfg_scale, top_k=1, position_offset=1)
    assert torch.equal(codes.cpu(), data[f"greedy_{cfg_scale}"])


def test_sampled_codes_are_those_of_the_cpu():
    options = {"cfg_scale": 2.0, "top_k": 50, "top_p": 0.95, "seed": 3}
    labels = torch.arange(64) % 10
    model = published_aim("tiny_group")
    expected = generate(model, labels, **options)
    assert (generate(model.cuda(), labels, **options).cpu() == expected).float().mean() > 0.99


def test_tokenizer_codes():
    model, (_, data) = published_vq8().cuda(), fixture("vq8")
    clear = data["index_margin"] >= 1e-4
    assert torch.equal(model.encode(data["image"].cuda()).cpu()[clear], data["indices"][clear])


def test_training_in_bf16_is_continued(tmp_path):
    experiment = write_experiment(tmp_path)
    options = ("--trainer.accelerator", "gpu", "--trainer.precision", "bf16-mixed")

    def fit(run):
        command = [sys.executable, "-m", "aim_lightning", "fit", "--config", str(experiment), "--run", run, *options]
        done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    fit("whole")
    fit("cut")
    (tmp_path / "runs/tiny/cut/checkpoints/step=00000022.ckpt").unlink()
    assert "training from step 20" in fit("cut")
    whole, cut = (dict(scalars(tmp_path / "runs" / "tiny" / run)["train/loss"]) for run in ("whole", "cut"))
    assert sorted(cut) == list(range(22))
    assert [cut[step] for step in range(22)] == pytest.approx([whole[step] for step in range(22)], rel=5e-3)
