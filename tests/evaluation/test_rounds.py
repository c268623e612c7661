"""Drawing and scoring in rounds: memory stays as it was (within a training: test_training_evaluation)."""

import gc
import resource

import pytest
import torch
from evaluation.small import networks
from metrics.test_frechet import Means
from metrics.test_scores import real_of

from aim_lightning.evaluation.incremental import IncrementalScorer
from aim_lightning.sampling import SamplingOptions

pytestmark = pytest.mark.filterwarnings("ignore:FrechetDistance")


def test_fifty_evaluations_leave_memory_as_it_was():
    """No collection in between, which would hide memory in cycles."""
    pipeline, network, images = networks(), Means().load(), torch.randint(0, 256, (30, 3, 4, 4), dtype=torch.uint8)
    rounds = IncrementalScorer(
        network, real_of(network, images, torch.arange(30) % 3), SamplingOptions(batch_size=16), True
    )
    seen = []
    for _ in range(50):
        assert rounds.score(pipeline, 16, lambda phase: 0).num_images == 16
        tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        seen.append((tensors, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
    assert 0 < max(tensors for tensors, _ in seen[40:]) <= max(tensors for tensors, _ in seen[:10]), "tensors are kept"
    assert seen[-1][1] - seen[9][1] < 30, "MiB"
