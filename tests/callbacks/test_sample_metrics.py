"""The scores of samples and baselines in validation."""

from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from evaluation.small import networks
from helpers import TINY
from metrics.builders import Means

from aim_lightning.callbacks.evaluation.sample_metrics import SampleMetrics, _untrained
from aim_lightning.data.images.dataset import Images
from aim_lightning.evaluation.evaluated_model import EvaluatedModel
from aim_lightning.evaluation.reference import Reference
from aim_lightning.evaluation.sample_blocks import SamplePlan, balanced_labels
from aim_lightning.evaluation.scorer import Evaluation, Scorer
from aim_lightning.models import AiM
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.dist import ProcessGroup


@pytest.mark.filterwarnings("ignore:FrechetDistance")
def test_validate_gives_the_values_of_evaluate_and_the_baselines(tmp_path):
    pipeline = networks()
    images = Images(*[str(ROOT / "data/fashion_mnist_mini/val")] * 2, image_size=4, resize=4)
    callback = SampleMetrics(num_samples=40, baselines=True, cache_dir=str(tmp_path / "cache"))
    callback.features, callback.images = Means().load(), images
    callback.tokenizer, callback.sampling = pipeline.tokenizer, SamplingOptions(cfg_scale=1.5, seed=4, batch_size=16)
    values = {}
    callback.log = lambda name, value, **_: values.update({name.removeprefix("metrics/"): value})
    trainer = SimpleNamespace(callbacks=[])
    callback.score(trainer, SimpleNamespace(network=pipeline.aim), True)

    reference = Reference(None, images).statistics(callback.features, ProcessGroup(), tmp_path / "cache")
    scorer = Scorer(callback.features, reference, None, ProcessGroup(), compare=False)
    evaluation = Evaluation(EvaluatedModel(pipeline, "x", raw=True), scorer, tmp_path, {})
    record = evaluation.run(SamplePlan(balanced_labels(40, range(3)), 16), callback.sampling)
    assert {name: values[name] for name in record["metrics"]} == pytest.approx(record["metrics"])
    name = callback.features.metric_name
    assert {f"{name}_40_raw", f"{name}_40_untrained", f"{name}_2k_real", "class_agreement_2k_real"} <= set(values)
    assert values[f"{name}_2k_real"] < values[f"{name}_40_raw"]
    protocol = callback.protocol()
    assert (protocol["num_samples"], protocol["sampling"]["seed"]) == (40, 4)
    assert {"features", "reference", "tokenizer"} <= set(protocol)


def test_the_untrained_network_is_reproducible_and_leaves_the_random_state():
    network = AiM(TINY, "torch")
    before = torch.get_rng_state()
    first = _untrained(network)
    assert torch.equal(before, torch.get_rng_state()) and first.backend_option == "torch"
    torch.manual_seed(8)
    assert torch.equal(first.lm_head.weight, _untrained(network).lm_head.weight)
