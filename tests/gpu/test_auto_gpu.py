"""Defaults of sampling on an NVIDIA GPU: the fast decoder, bfloat16 pixels, and scores of the averaged weights."""

import logging

import pytest
import torch
import yaml
from callbacks.test_training_evaluation import DATA, MORE
from evaluation.small import networks
from gpu.test_fast_gpu import LABELS, network
from gpu.test_pixels_gpu import pipeline
from helpers import TINY, write_tokens
from integration.tiny import Experiment, write_config

from aim_lightning.cli.main import main
from aim_lightning.evaluation.score_record import read_record
from aim_lightning.sampling import SamplingOptions, generate
from aim_lightning.utils.logging import log_once

pytestmark = pytest.mark.gpu
GPU = ("--trainer.accelerator", "gpu", "--model.network.d_state", 16, "--model.network.mixer_dropout", 0)


def test_auto_takes_the_fast_decoder_and_logs_it_once(caplog):
    model, options = network("group"), {"cfg_scale": 2.0, "seed": 7}
    log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="aim_lightning"):
        codes = [generate(model, LABELS, **options) for _ in range(2)]
    line = "sampling.decoder auto took fast, in bfloat16: the network is on an NVIDIA GPU"
    assert [record.getMessage() for record in caplog.records].count(line) == 1
    for result in codes:
        assert torch.equal(result, generate(model, LABELS, decoder="fast", precision="bfloat16", **options))


@pytest.mark.parametrize("case", ["autocast", "dropout", "weights"])
def test_auto_takes_the_plain_decoder_and_logs_the_reason(caplog, case):
    model = network("group", token_dropout=0.1)
    model = model.half() if case == "weights" else model
    model.backbone.token_dropout.train(case == "dropout")
    reason = "no dropout, which is in training mode" if case == "dropout" else "no float16, the type of"
    log_once.cache_clear()
    half = torch.autocast("cuda", torch.float16, enabled=case == "autocast")
    with half, caplog.at_level(logging.INFO, logger="aim_lightning"):
        generate(model, LABELS)
    assert any("took plain" in record.getMessage() and reason in record.getMessage() for record in caplog.records)


def test_pixels_are_bfloat16_and_those_of_scores_float32():
    made = pipeline()
    images, scores = made.resolve(SamplingOptions()), made.resolve(SamplingOptions().for_scores())
    assert (images.pixel_precision, images.decoder) == ("bfloat16", "fast")
    assert (scores.pixel_precision, scores.precision) == ("float32", "bfloat16")


@pytest.mark.usefixtures("own_signals")
@pytest.mark.filterwarnings("ignore")
def test_training_evaluates_the_averaged_weights(tmp_path, capsys):
    """The last scores of a training are those of `evaluate` on its last checkpoint; the trained weights have others."""
    log_once.cache_clear()
    made = networks()
    made.save_pretrained(tmp_path / "published")
    for split, rows in (("train", [25, 20, 16]), ("val", [19])):
        write_tokens(tmp_path / "tokens" / split, rows, tokenizer_hash=made.tokenizer.weights_hash, config=TINY)
    values = yaml.safe_load(write_config(tmp_path).read_text())
    more = yaml.safe_load(MORE.format(root=tmp_path, data=DATA))
    values["callbacks"] = {**more.pop("callbacks"), **values["callbacks"]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**values, **more}, sort_keys=False))
    experiment = Experiment(tmp_path / "tiny.yaml")
    # A high rate keeps the averaged weights away from the trained ones.
    run = experiment.fit("main", *GPU, "--model.optimizer.base_learning_rate", 2)
    trained = read_record(run / "samples" / "evaluation.json")
    expected = {"decoder": "fast", "precision": "bfloat16", "pixel_precision": "float32"}
    assert trained["protocol"]["sampling"].items() >= expected.items()
    for name, *raw in (("ema",), ("raw", "--raw")):
        assert (
            main(
                experiment.words(
                    "evaluate",
                    "main",
                    *GPU,
                    "--num",
                    40,
                    "--model.optimizer.base_learning_rate",
                    2,
                    "--out",
                    tmp_path / name,
                    *raw,
                )
            )
            == 0
        )
    assert "sampling.decoder auto took" in capsys.readouterr().out
    ema, raw = (read_record(next((tmp_path / name).glob("*/scores.json"))) for name in ("ema", "raw"))
    assert ema["protocol"]["sampling"] == trained["protocol"]["sampling"]
    during, after, of_raw = (next(iter(record["metrics"].values())) for record in (trained, ema, raw))
    assert during == pytest.approx(after, rel=1e-4)
    assert during != pytest.approx(of_raw, rel=1e-3)
