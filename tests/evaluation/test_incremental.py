"""Incremental scoring: the values of `evaluate`, a stop between two rounds, constant memory."""

import gc
import resource
from dataclasses import replace

import pytest
import torch
from evaluation.small import networks
from metrics.builders import Means, reference_of

from aim_lightning.evaluation.evaluated_model import EvaluatedModel
from aim_lightning.evaluation.incremental import IncrementalScorer
from aim_lightning.evaluation.sample_blocks import SamplePlan, balanced_labels
from aim_lightning.evaluation.scorer import Evaluation, Scorer
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.dist import ProcessGroup

pytestmark = pytest.mark.filterwarnings("ignore:FrechetDistance")
SAMPLING = SamplingOptions(cfg_scale=1.5, seed=4, batch_size=16)


@pytest.fixture
def scorer():
    network, images = Means().load(), torch.randint(0, 256, (30, 3, 4, 4), dtype=torch.uint8)
    return Scorer(network, reference_of(network, images, torch.arange(30) % 3), None, ProcessGroup())


def test_the_images_and_values_are_those_of_evaluate(scorer, tmp_path):
    pipeline, plan = networks(), SamplePlan(balanced_labels(40, range(3)), 16)
    record = Evaluation(EvaluatedModel(pipeline, "x"), scorer, tmp_path, {}).run(plan, SAMPLING)
    incremental = IncrementalScorer(scorer, SAMPLING)
    scores = incremental.score(pipeline, 40, lambda phase: 0)
    assert {f"{name}_40": value for name, value in scores.values.items()} == pytest.approx(record["metrics"])
    assert torch.equal(scores.first_images, pipeline.generate(plan.labels[:16], **SAMPLING.options()))
    protocol = incremental.protocol(40)
    assert protocol == {name: record["protocol"][name] for name in protocol} | {"sampling": protocol["sampling"]}


def test_both_ask_for_float32_pixels_unless_told_otherwise(scorer, tmp_path, monkeypatch):
    """On a GPU the pipeline alone would take bfloat16."""
    pipeline, plan, asked = networks(), SamplePlan(balanced_labels(16, range(3)), 16), []
    resolve = pipeline.resolve
    monkeypatch.setattr(pipeline, "resolve", lambda options: asked.append(options) or resolve(options))
    for options in (SAMPLING, replace(SAMPLING, pixel_precision="bfloat16")):
        evaluation = Evaluation(EvaluatedModel(pipeline, "x"), scorer, tmp_path, {})
        evaluation.directory(plan, options)
        IncrementalScorer(scorer, options).score(pipeline, 4, lambda phase: 1)
    assert [options.pixel_precision for options in asked] == ["float32"] * 2 + ["bfloat16"] * 2


def test_a_signal_stops_it_before_the_next_round_without_values(scorer):
    phases = []

    def stop(phase):
        phases.append(phase)
        return len(phases) - 1

    scores = IncrementalScorer(scorer, SAMPLING).score(networks(), 40, stop)
    assert phases == ["block 0 of 3 of an evaluation", "block 1 of 3 of an evaluation"]
    assert (scores.signal, scores.values) == (1, {})


@pytest.mark.long
def test_fifty_evaluations_use_constant_memory(scorer):
    """Measure without garbage collection, which would hide memory in reference cycles."""
    pipeline, incremental = networks(), IncrementalScorer(scorer, SAMPLING)
    measured = []
    for _ in range(50):
        assert incremental.score(pipeline, 16, lambda phase: 0).num_images == 16
        tensors = sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())
        measured.append((tensors, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
    counts = [tensors for tensors, _ in measured]
    assert 0 < max(counts[40:]) <= max(counts[:10]), "tensors are kept"
    assert measured[-1][1] - measured[9][1] < 30, "MiB"
