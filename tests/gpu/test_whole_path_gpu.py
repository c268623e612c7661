"""Published numbers, training, signals and tokenizing on an NVIDIA GPU."""

import signal
import subprocess
import time

import pytest
import torch
from conftest import ROOT
from gpu.tolerances import LOGITS
from helpers import FIXTURES, fixture, published_aim, published_vq8, relative
from integration.tiny import Experiment, scalars, write_config, write_experiment
from PIL import Image

from aim_lightning.data.images.dataset import Images
from aim_lightning.data.tokens.format.tokenize_options import TokenizeOptions, Views
from aim_lightning.data.tokens.write.encode import Encoder
from aim_lightning.data.tokens.write.tokenize_job import TokenizeJob
from aim_lightning.evaluation.image_sets import DirectoryImages, on_device
from aim_lightning.models import VQConfig, VQModel
from aim_lightning.runs.directory import list_checkpoints
from aim_lightning.sampling import generate
from aim_lightning.utils.pixels import to_unit_range
from aim_lightning.utils.process import ProcessRank

pytestmark = pytest.mark.gpu
GPT = ("--config", FIXTURES / "tiny_gpt.yaml")


@pytest.mark.parametrize("dtype", LOGITS)
@pytest.mark.parametrize("name", ["tiny_group", "tiny_adaln"])
def test_logits(name, dtype):
    model, (_, data) = published_aim(name).cuda(), fixture(name)
    codes, labels = data["tokens"].cuda(), data["labels"][:, 0].cuda()
    with torch.no_grad(), torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        logits = model(codes[:, :-1], labels).float().cpu()
    assert relative(logits[:, data["logit_positions"]], data["logits"]) <= LOGITS[dtype]


@pytest.mark.parametrize("cfg_scale", [1, 3])
def test_greedy_codes(cfg_scale):
    model, (_, data) = published_aim("tiny_group").cuda(), fixture("tiny_group")
    codes = generate(model, data["labels"][:, 0], cfg_scale=cfg_scale, top_k=1, position_offset=1, decoder="plain")
    assert torch.equal(codes.cpu(), data[f"greedy_{cfg_scale}"])


def test_sampled_codes_are_those_of_the_cpu():
    options = {"cfg_scale": 2.0, "top_k": 50, "top_p": 0.95, "seed": 3, "decoder": "plain"}
    labels = torch.arange(64) % 10
    model = published_aim("tiny_group")
    expected = generate(model, labels, **options)
    assert (generate(model.cuda(), labels, **options).cpu() == expected).float().mean() > 0.99


def test_tokenizer_codes():
    model, (_, data) = published_vq8().cuda(), fixture("vq8")
    clear = data["index_margin"] >= 1e-4
    assert torch.equal(model.encode(data["image"].cuda()).cpu()[clear], data["indices"][clear])


@pytest.mark.parametrize(
    "options", [(), (*GPT,), (*GPT, "--model.compile", "true")], ids=["AiM", "GPT", "compiled GPT"]
)
def test_training_in_bf16_is_continued(tmp_path, capsys, own_signals, options):
    experiment = Experiment(write_experiment(tmp_path))
    options = (*options, "--trainer.accelerator", "gpu", "--trainer.precision", "bf16-mixed")
    complete = experiment.fit("whole", *options)
    cut = experiment.copy("whole", "cut", 20)
    experiment.fit("cut", *options)
    assert "training from step 20" in capsys.readouterr().out
    expected, result = (dict(scalars(run)["train/loss"]) for run in (complete, cut))
    assert sorted(result) == list(range(1, 23))
    assert [result[step] for step in range(1, 23)] == pytest.approx([expected[step] for step in range(1, 23)], rel=5e-3)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_stops_training_at_a_boundary(tmp_path, number):
    """Send the signal after LLVM replaced the handlers, which it does when Triton compiles the first kernel."""
    experiment = Experiment(write_experiment(tmp_path))
    options = ("--trainer.accelerator", "gpu", "--trainer.max_steps", 100000, "--model.network.mixer_dropout", 0)
    process, deadline = experiment.start("fit", "main", *options), time.monotonic() + 400
    # The first step compiles kernels, for minutes where several tests do so at the same time. A signal before the first
    # checkpoint would wait for the end of that step.
    while not (saved := list_checkpoints(experiment.runs / "main")) and process.poll() is None:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    process.send_signal(number if saved else signal.SIGKILL)
    try:
        output = process.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        process.kill()  # it would train on next to the other tests
        output = process.communicate()[0]
    assert process.returncode == 128 + number, output
    assert f"stopped by {number.name}" in output


def _tokenize(images, tokenizer, out, options, world=1):
    for rank in range(world):
        job = TokenizeJob(
            images, tokenizer, out, options, ProcessRank(rank, world), torch.device("cuda"), num_workers=2
        )
        manifest = job.run()
    return manifest, {path.name: path.read_bytes() for path in out.glob("*.tar")}


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_tokenizing_gives_the_same_bytes_for_any_number_of_processes(tmp_path, precision):
    torch.manual_seed(0)
    tokenizer = VQModel(VQConfig(image_size=64, channel_multipliers=(1, 2, 2), codebook_size=1024)).eval()
    images = Images(str(ROOT / "data/fashion_mnist_mini/val"), "", image_size=64, crop="adm_center").open("train")
    images.source.labels = images.source.labels[:200]  # enough to fill some shards
    options = TokenizeOptions(Views("center_flip"), rows_per_shard=30, batch_size=16, precision=precision)
    manifest, one = _tokenize(images, tokenizer, tmp_path / "one", options)
    assert manifest.encoding["devices"] == [torch.cuda.get_device_name()] and len(one) == 7
    assert _tokenize(images, tokenizer, tmp_path / "three", options, world=3)[1] == one
    plain = VQModel(tokenizer.config).eval()
    plain.load_state_dict(tokenizer.state_dict())
    images, _ = images.batch(range(64))
    expected = plain.encode(to_unit_range(images))
    same = (Encoder(tokenizer, torch.device("cuda"), precision)(images).cpu() == expected).float().mean()
    assert same >= {"float32": 0.995, "tf32": 0.95, "bf16": 0.8}[precision]


def test_prefetched_images_arrive_intact(tmp_path):
    directory = tmp_path / "images"
    directory.mkdir()
    images = torch.randint(0, 256, (300, 64, 64, 3), dtype=torch.uint8)  # enough for loader processes
    for number, image in enumerate(images.numpy()):
        Image.fromarray(image).save(directory / f"{number:03d}.png")
    torch.zeros(1, device="cuda")
    batches = DirectoryImages(directory).batches([range(start, start + 50) for start in range(0, 300, 50)])
    seen = [(batch.clone(), numbers) for batch, _, numbers in on_device(batches, torch.device("cuda"))]
    assert torch.equal(torch.cat([batch.cpu() for batch, _ in seen]), images.permute(0, 3, 1, 2))
    assert torch.cat([numbers for _, numbers in seen]).tolist() == list(range(300))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_adversarial_training_is_continued(tmp_path, precision, capsys, own_signals):
    """Restore discriminator, scaler, revival and record; kernels may sum in another order."""
    experiment = Experiment(write_config(tmp_path, "tiny_tokenizer"))
    options = ("--trainer.accelerator", "gpu", "--trainer.precision", precision)
    options += ("--model.optimizer.base_learning_rate", "1e-2")
    complete = experiment.fit("whole", *options)
    cut = experiment.copy("whole", "cut", 4)
    experiment.fit("cut", *options)
    assert "training from step 4" in capsys.readouterr().out
    for tag in ("train/loss", "train/discriminator", "val/psnr"):
        expected, result = (dict(scalars(run)[tag]) for run in (complete, cut))
        assert expected.keys() == result.keys()
        assert list(result.values()) == pytest.approx(list(expected.values()), rel=2e-2), tag


def test_the_quantiser_is_float32_under_autocast():
    model = published_vq8().cuda()
    images = fixture("vq8")[1]["image"].cuda()
    with torch.autocast("cuda", dtype=torch.float16):
        quantized = model(images).quantized
    assert quantized.quantized_BCHW.dtype == quantized.codebook_loss.dtype == torch.float32
    norms = quantized.latent_BCHW.norm(dim=1)
    assert (norms - 1).abs().max() < 1e-5  # in half precision it would be off by 1e-3
