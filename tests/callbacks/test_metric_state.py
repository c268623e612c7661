"""Half-filled metrics travel in checkpoints."""

import torch
from lightning.pytorch import LightningModule
from torchmetrics import CatMetric, MeanMetric

from aim_lightning.callbacks.training.metric_state import metric_states, restore_metrics


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.mean, self.seen, self.unused = MeanMetric(), CatMetric(), MeanMetric()


def filled(values):
    module = Module()
    for value in values:
        module.mean.update(value)
        module.seen.update(torch.tensor([value]))
    return module


def test_each_rank_gets_its_own_back():
    ranks = [metric_states(filled(values)) for values in ([1.0, 2.0], [5.0])]
    assert set(ranks[0]) == {"mean", "seen"}
    for rank, expected in enumerate((1.5, 5.0)):
        module = Module()
        restore_metrics(module, ranks, rank, 2)
        assert module.mean.compute() == expected
        module.mean.update(expected)
        assert module.mean.compute() == expected
        assert module.unused._update_count == 0


def test_another_number_of_ranks_gets_all_together_on_the_first():
    ranks = [metric_states(filled(values)) for values in ([1.0, 2.0], [6.0], [])]
    modules = [Module(), Module()]
    for rank, module in enumerate(modules):
        restore_metrics(module, ranks, rank, 2)
    assert modules[0].mean.compute() == 3.0 and sorted(modules[0].seen.compute().tolist()) == [1.0, 2.0, 6.0]
    assert modules[1].mean._update_count == 0


def test_states_are_copies_and_nothing_is_stored_after_a_reset():
    module = filled([1.0])
    states = metric_states(module)
    module.mean.update(3.0)
    assert float(states["mean"]["values"]["mean_value"]) == 1.0
    module.mean.reset()
    module.seen.reset()
    assert metric_states(module) == {}
