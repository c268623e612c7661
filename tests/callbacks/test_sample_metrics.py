"""Which images the metric callback scores, and that ranks share them."""

from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, TINY_VQ

from aim_lightning.callbacks.evaluation.sample_metrics import SampleMetrics, _untrained
from aim_lightning.models import AiM, VQModel
from aim_lightning.sampling import SamplingOptions


@pytest.fixture
def callback():
    torch.manual_seed(0)
    metrics = SampleMetrics(num_samples=23, batch_size=4)
    metrics.tokenizer = VQModel(TINY_VQ.__class__(**{**TINY_VQ.__dict__, "image_size": 4})).eval()
    metrics.sampling = SamplingOptions(cfg_scale=1.5, seed=4)
    return metrics


def draw(callback, network, rank, world):
    trainer = SimpleNamespace(global_rank=rank, world_size=world, is_global_zero=False)
    parts = list(callback._samples(trainer, network, "test"))
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def test_ranks_share_the_same_set_with_balanced_classes(callback):
    network = AiM(TINY).eval()
    images, labels = draw(callback, network, 0, 1)
    assert len(images) == 23 and labels.tolist() == [k % 3 for k in range(23)]
    for rank in range(3):
        mine, theirs = draw(callback, network, rank, 3)
        assert theirs.tolist() == labels[rank::3].tolist()
        assert (mine.int() - images[rank::3].int()).abs().max() <= 1


def test_the_untrained_network_is_always_the_same_and_leaves_no_trace():
    torch.manual_seed(8)
    before = torch.get_rng_state()
    a, b = _untrained(AiM(TINY), torch.device("cpu")), None
    torch.set_rng_state(before)
    b = _untrained(AiM(TINY), torch.device("cpu"))
    assert torch.equal(a.lm_head.weight, b.lm_head.weight)


def test_the_untrained_network_has_the_backend_that_was_asked_for():
    assert _untrained(AiM(TINY, "torch"), torch.device("cpu")).backend_option == "torch"
