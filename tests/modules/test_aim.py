"""AiM's LightningModule without a Trainer."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, assert_user_error
from torch.nn import functional as F

from aim_lightning.modules.aim import AiMModule
from aim_lightning.modules.optim import OptimizerConfig
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.random import hash_uniform


@pytest.fixture
def make_module(monkeypatch):
    """Return a function that makes a module whose logged values are in `logged`."""

    def make(precision="32-true", accumulate=1, **options) -> AiMModule:
        torch.manual_seed(0)
        module = AiMModule(TINY, OptimizerConfig(base_learning_rate=0.1), 128, backend="torch", **options)
        for parameter in module.network.parameters():  # a new network's gates are nearly 0
            torch.nn.init.normal_(parameter, std=0.2)
        module.logged = {}
        monkeypatch.setattr(module, "log", lambda name, value, **_: module.logged.update({name: float(value)}))
        module._trainer = SimpleNamespace(
            precision=precision, accumulate_grad_batches=accumulate, global_step=7, max_steps=20, max_epochs=None
        )
        module._trainer.datamodule = None
        return module

    return make


def make_batch(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, TINY.vocab_size, (rows, TINY.num_tokens), generator=generator)
    labels = torch.randint(0, TINY.num_classes, (rows,), generator=generator)
    return {"codes": codes, "labels": labels, "index": torch.arange(rows) + 5, "epoch": torch.tensor(2)}


def expected_loss(module: AiMModule, codes, labels) -> float:
    return float(F.cross_entropy(module.network(codes[:, :-1], labels).flatten(0, 1), codes.flatten()))


def test_the_loss_is_that_of_labels_dropped_by_seed_epoch_and_row(make_module):
    module, batch = make_module(label_dropout=0.3, seed=4), make_batch(40)
    dropped = hash_uniform("label_dropout", 4, batch["epoch"], batch["index"]) < 0.3
    assert 5 < dropped.sum() < 20
    labels = torch.where(dropped, TINY.num_classes, batch["labels"])
    loss = float(module.training_step(batch, 0))
    assert loss == pytest.approx(expected_loss(module, batch["codes"], labels), rel=1e-5)
    assert abs(loss - expected_loss(module, batch["codes"], batch["labels"])) > 1e-4
    assert module.logged == pytest.approx({"train/loss": loss, "train/bits_per_code": loss / math.log(2)}, rel=1e-6)


def test_the_logged_loss_is_the_mean_over_the_micro_batches_of_a_step(make_module):
    module = make_module(accumulate=2)
    losses = []
    for number in range(4):
        losses.append(float(module.training_step(make_batch(3, number), number)))
        assert bool(module.logged) == (number > 0)
    assert module.logged["train/loss"] == pytest.approx((losses[2] + losses[3]) / 2, rel=1e-6)


def test_validation_drops_no_labels_and_weights_rows_equally(make_module):
    module, batch = make_module(label_dropout=1.0), make_batch(9)
    for rows in (slice(0, 7), slice(7, 9)):
        module.validation_step({name: value[rows] if value.ndim else value for name, value in batch.items()}, 0)
    module.on_validation_epoch_end()
    loss = expected_loss(module, batch["codes"], batch["labels"])
    assert module.logged == pytest.approx({"val/loss": loss, "val/bits_per_code": loss / math.log(2)}, rel=1e-5)
    module.validation_step(batch, 0)
    assert module.val_loss.weight == 9  # the first validation is not part of the second


def test_gradients_are_clipped_by_norm_and_checked(make_module):
    module = make_module()
    module.training_step(make_batch(4), 0).backward()
    gradients = [p.grad for p in module.network.parameters() if p.grad is not None]
    norm = float(torch.cat([g.flatten() for g in gradients]).norm())
    optimizer = module.configure_optimizers()["optimizer"]
    module.configure_gradient_clipping(optimizer, norm / 2, "norm")
    assert module.logged["train/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert float(torch.cat([g.flatten() for g in gradients]).norm()) == pytest.approx(norm / 2, rel=1e-4)
    with pytest.raises(UserError, match="gradient_clip_algorithm is value; only norm"):
        module.configure_gradient_clipping(optimizer, 1.0, "value")
    gradients[0].fill_(math.inf)
    assert_user_error("the gradient norm is inf at step 7", module.configure_gradient_clipping, optimizer, 1.0)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_only_scaled_gradients_may_overflow(make_module, precision):
    module = make_module(precision)
    with torch.no_grad():
        module.network.lm_head.weight.fill_(math.nan)
    if precision == "16-mixed":  # there the loss is checked instead
        assert_user_error("the loss is nan at step 7", module.training_step, make_batch(4), 0)
    for parameter in module.network.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    optimizer = module.configure_optimizers()["optimizer"]
    if precision == "16-mixed":
        module.configure_gradient_clipping(optimizer, None)
    else:
        assert_user_error("the gradient norm", module.configure_gradient_clipping, optimizer, None)


def test_the_learning_rate_decays_per_step_until_the_end(make_module):
    configured = make_module().configure_optimizers()
    schedule = configured["lr_scheduler"]
    assert configured["optimizer"].param_groups[0]["lr"] == pytest.approx(0.05)  # 128 of 256 images
    assert schedule["interval"] == "step" and schedule["scheduler"].lr_lambdas[0](5) == 0.75


def test_an_implausibly_low_loss_is_warned_about_once(make_module, monkeypatch, capsys):
    module, warned = make_module(), set()
    monkeypatch.setattr("aim_lightning.utils.logging._warned", warned)
    uniform = math.log(TINY.vocab_size)
    for loss in (0.06 * uniform, 0.04 * uniform, 0.03 * uniform):
        module._check_plausible(loss)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "val/loss is below 5% of ln 16 = 2.77 nats" in error
