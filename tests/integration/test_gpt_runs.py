"""The transformer baseline in the commands that AiM uses: train, resume, sample, evaluate, inspect, export."""

import json

import pytest
import torch
from conftest import ROOT
from evaluation.small import CONFIG, networks, write_inputs
from helpers import assert_user_error, random_weights
from integration.tiny import Experiment, assert_same, scalars

import aim_lightning
from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.config.signature import find_class, parameters
from aim_lightning.models import GPT, NETWORKS, GPTConfig
from aim_lightning.pipeline import AiMPipeline
from aim_lightning.runs.directory import newest_checkpoint
from aim_lightning.sampling import generate
from aim_lightning.weights.load import adapt_weights
from aim_lightning.weights.source import MODULES

pytestmark = pytest.mark.filterwarnings("ignore:FrechetDistance", "ignore:.*Fabric.*")
NETWORK = """{{d_model: 32, n_layer: 2, n_head: 2, vocab_size: 16, num_classes: 3, num_tokens: 4, d_intermediate: 64,
      tie_embeddings: true}}
    optimizer"""
TRAINING = """
  max_steps: 6
  max_epochs: -1
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
callbacks:
  ema: {class_path: aim_lightning.callbacks.training.ema.EMA, init_args: {decay: 0.5}}
  throughput: {class_path: aim_lightning.callbacks.logging.throughput.Throughput}
  checkpoints: {class_path: aim_lightning.callbacks.training.checkpoints.Checkpoints, init_args: {every_n_steps: 4}}
logger:
  tensorboard: {class_path: lightning.pytorch.loggers.TensorBoardLogger}
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Return the small experiment of the evaluation's tests with a GPT instead of its AiM, trained for six steps."""
    root = tmp_path_factory.mktemp("gpt")
    write_inputs(root)
    start, end = CONFIG.index("{{d_model"), CONFIG.index("optimizer")
    text = (CONFIG[:start] + NETWORK + CONFIG[end + len("optimizer") :]).replace("aim.AiMModule", "gpt.GPTModule")
    text = text.format(root=root).replace("trainer: {accelerator: cpu, devices: 1}", "trainer:\n  accelerator: cpu")
    (root / "small.yaml").write_text(text.rstrip() + TRAINING)
    experiment = Experiment(root / "small.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        experiment.fit("main", "--trainer.devices", 1)
    return experiment


@pytest.fixture
def run_dir(experiment):
    return experiment.runs / "main"


@pytest.mark.parametrize("config_class", NETWORKS, ids=lambda config_class: config_class.__name__)
def test_every_network_is_registered_with_its_module(config_class):
    module = find_class(MODULES[config_class], "model")
    assert module.network_class is NETWORKS[config_class]
    assert parameters(module)["network"].annotation is config_class


def test_training_resumes_to_the_bit(experiment, run_dir, own_signals):
    content = read_checkpoint(newest_checkpoint(run_dir))
    assert {"backbone.embeddings.weight", "lm_head.weight"} <= set(content["network"])
    for network in (content["network"], content["ema"]["network"]):  # tied
        assert torch.equal(network["lm_head.weight"], network["backbone.embeddings.weight"])
    assert {"perf/model_tflops_per_s", "train/bits_per_code", "val/bits_per_code"} <= set(scalars(run_dir))
    killed = experiment.copy("main", "killed", step=4)
    experiment.fit("killed", "--trainer.devices", 1)
    assert_same(killed, run_dir)


def test_commands_sample_evaluate_and_inspect(experiment, run_dir, succeed, tmp_path):
    succeed(*experiment.words("sample", "main", "--classes", "0,2", "--num", 2, "--out", tmp_path / "images"))
    assert len(list((tmp_path / "images").glob("*.png"))) >= 4
    succeed(*experiment.words("evaluate", "main", "--num", 40, "--cache", tmp_path / "cache"))
    (scores,) = (run_dir / "evaluations").glob("*/scores.json")
    record = json.loads(scores.read_text())
    assert "fd_effnet_lite0_40" in json.dumps(record["metrics"])
    assert "GPT" in succeed("weights", "inspect", run_dir)


def test_what_a_gpt_lacks_is_refused_in_one_line(experiment, run_dir, fail, tmp_path):
    assert "a GPT has no published layout" in fail("weights", "export", run_dir, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    fast = experiment.words("sample", "main", "--sampling.decoder", "fast", "--out", tmp_path / "images")
    assert "the fast decoder cannot be used: it supports AiM only, not GPT" in fail(*fast)
    offset = experiment.words("sample", "main", "--sampling.position_offset", 1, "--out", tmp_path / "images")
    assert "position_offset is 1, but a GPT has no published decoder; use 0" in fail(*offset)
    foreign = experiment.words("fit", "other", "--model.init_from", experiment.file.parent / "published")
    assert "is not a run of aim_lightning.modules.gpt.GPTModule" in fail(*foreign)


def test_a_new_run_starts_from_the_weights_of_another(experiment, run_dir, own_signals):
    options = ("--trainer.devices", 1, "--model.init_from", run_dir, "--trainer.max_steps", 1)
    experiment.fit("tuned", *options, "--model.optimizer.base_learning_rate", 1e-9)
    averaged = read_checkpoint(newest_checkpoint(run_dir))["ema"]["network"]
    tuned = read_checkpoint(newest_checkpoint(experiment.runs / "tuned"))["network"]
    assert all(torch.allclose(value, averaged[name], atol=1e-6) for name, value in tuned.items())


def test_a_pipeline_samples_the_codes_of_the_complete_forward():
    """Greedy codes with guidance, from caches and from the complete sequence at every step."""
    torch.manual_seed(0)
    config = GPTConfig(d_model=32, n_layer=2, n_head=2, vocab_size=16, num_classes=3, num_tokens=4)
    model = random_weights(GPT(config).eval(), vectors=True)
    labels, codes = torch.tensor([0, 1, 2]), torch.zeros(3, 0, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(4):
            logits, null = model(codes, labels)[:, -1], model(codes, torch.full_like(labels, 3))[:, -1]
            codes = torch.cat((codes, (null + 2 * (logits - null)).argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(generate(model, labels, cfg_scale=2.0, top_k=1), codes)
    pipeline = AiMPipeline(model, networks().tokenizer)
    assert pipeline.generate([0, 1, 2], cfg_scale=2.0).shape == (3, 3, 4, 4)
    assert_user_error("a GPT has no published layout", pipeline.save_pretrained, "never")


def test_a_run_is_loaded_in_python(run_dir):
    pipeline = aim_lightning.load(run_dir)
    assert isinstance(pipeline.aim, GPT) and not pipeline.aim.training
    assert torch.equal(
        pipeline.generate([1], seed=3), aim_lightning.load(run_dir, backend="triton").generate([1], seed=3)
    )


def test_weights_fit_another_number_of_classes():
    sizes = {"d_model": 32, "n_layer": 1, "n_head": 2, "vocab_size": 16, "num_tokens": 4}
    old, new = GPT(GPTConfig(num_classes=3, **sizes)), GPT(GPTConfig(num_classes=5, **sizes))
    weights, (note,) = adapt_weights(new, old.state_dict())
    new.load_state_dict(weights)
    assert "5 fresh classes in place of 3" in note
    assert torch.equal(
        new.backbone.cls_embed.embedding_table.weight[-1], old.backbone.cls_embed.embedding_table.weight[-1]
    )
