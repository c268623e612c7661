"""Validation metrics of the tokenizer's module."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY_VQ, assert_user_error
from torch import Tensor
from torch.amp import GradScaler
from torchmetrics.functional.image import peak_signal_noise_ratio

from aim_lightning.losses import TokenizerLoss
from aim_lightning.models import PatchGANConfig
from aim_lightning.models.vq.model import Reconstruction
from aim_lightning.modules.adversary import AdversarialConfig
from aim_lightning.modules.codebook import RevivalConfig
from aim_lightning.modules.optim import OptimizerConfig, SkippingAdamW
from aim_lightning.modules.reconstruction_metrics import ReconstructionScores
from aim_lightning.modules.tokenizer import TokenizerModule
from aim_lightning.utils.errors import UserError


def tokenizer_module(**options) -> TokenizerModule:
    torch.manual_seed(0)
    return TokenizerModule(TINY_VQ, OptimizerConfig(schedule="constant"), 8, TokenizerLoss(), **options)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Return nearly white images, whose variance in a window is small relative to the squared mean."""
    images = torch.randint(240, 250, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return {"images": images.to(torch.uint8)}


def validate(module: TokenizerModule, batch: dict[str, Tensor]) -> dict[str, float]:
    """Validate one batch under the autocast of training."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        module.eval().validation_step(batch, 0)
    return {name: float(value) for name, value in module.scores.compute().items()}


def test_identical_images_give_ssim_1_under_autocast(batch, monkeypatch):
    module = tokenizer_module()
    quantized = module.network(module._images(batch)).quantized
    monkeypatch.setattr(module.network, "forward", lambda images: Reconstruction(images, quantized))
    assert validate(module, batch)["ssim"] == pytest.approx(1, abs=1e-6)


def test_scores_are_those_of_a_float32_reconstruction(batch):
    module = tokenizer_module()
    images = module._images(batch)
    with torch.no_grad():
        exact = module.network.eval()(images).images_BCHW.clamp(-1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = module.network(images).images_BCHW.float().clamp(-1, 1)
    psnr, other = (10 * math.log10(4 / float((x.double() - images.double()).square().mean())) for x in (exact, rounded))
    scores = validate(module, batch)
    assert scores["psnr"] == pytest.approx(psnr, abs=1e-5) and abs(other - psnr) > 1e-4


def with_adversary(**trainer) -> TokenizerModule:
    """Return a module with a discriminator, and with these attributes of a trainer."""
    discriminator = PatchGANConfig(num_layers=1, channels=8)
    adversarial = AdversarialConfig(start_step=4, discriminator=discriminator)
    module = tokenizer_module(adversarial=adversarial, revival=RevivalConfig(every_n_steps=5))
    module._trainer = SimpleNamespace(precision_plugin=None, **trainer)
    return module


@pytest.mark.parametrize("adversarial", [False, True])
def test_gradients_of_both_networks_are_divided_by_the_accumulation(batch, monkeypatch, adversarial):
    gradients = {}
    for accumulate in (1, 4):
        module = with_adversary()
        monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
        images = module._images(batch)
        result = module.network(images)
        module._backward(images, result, module._terms(images, result), accumulate, adversarial)
        gradients[accumulate] = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert gradients[1].keys() == gradients[4].keys()
    assert any(name.startswith("discriminator.") for name in gradients[1]) == adversarial
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[4][name] * 4, gradient, rtol=1e-5, atol=1e-8)


def test_the_schedule_of_the_discriminator_ends_with_training():
    module = with_adversary(max_steps=24, max_epochs=None, datamodule=None)
    module.optimizer_config = OptimizerConfig(schedule="linear")
    _, (schedule, discriminator) = module.configure_optimizers()
    assert [schedule.lr_lambdas[0](step) for step in (0, 12, 24)] == [1.0, 0.5, 0.0]
    assert [discriminator.lr_lambdas[0](step) for step in (0, 10, 20)] == [1.0, 0.5, 0.0]  # it starts 4 steps later


class LightningOptimizer:
    """Wraps an optimizer as Lightning does, which counts its steps as global steps."""

    def __init__(self, optimizer, module):
        self.optimizer = optimizer
        self.module = module
        self.zero_grad = optimizer.zero_grad

    def step(self):
        self.module.on_before_optimizer_step(self.optimizer)
        self.optimizer.step()
        self.module._trainer.global_step += 1


def test_both_networks_take_their_steps_after_the_last_micro_batch(batch, monkeypatch):
    """Check a step without and a step with the discriminator, each of two micro-batches, with and without fp16."""
    norms = []
    for scaler in (None, GradScaler("cpu", init_scale=8.0)):
        plan = SimpleNamespace(accumulate=2)
        module = with_adversary(max_steps=24, max_epochs=None, world_size=1, datamodule=SimpleNamespace(plan=plan))
        module._trainer.precision_plugin, module._trainer.global_step = SimpleNamespace(scaler=scaler), 3
        optimizers, schedules = module.configure_optimizers()
        lists = {True: [LightningOptimizer(optimizer, module) for optimizer in optimizers], False: optimizers}
        logged = {}
        for name, function in (
            ("optimizers", lambda use_pl_optimizer=True, lists=lists: lists[use_pl_optimizer]),
            ("lr_schedulers", lambda schedules=schedules: schedules),
            ("manual_backward", lambda loss: loss.backward()),
            ("log", lambda name, value, logged=logged, **_: logged.update({name: float(value)})),
            ("log_dict", lambda values, logged=logged: logged.update(values)),
        ):
            monkeypatch.setattr(module, name, function)
        weights, pairs = parameters(module), []
        module.network.register_forward_hook(
            lambda _, images, result, pairs=pairs: pairs.append((images[0], result.images_BCHW))
        )
        for number, changed in ((0, set()), (1, {"network"}), (2, set()), (3, {"network", "discriminator"})):
            logged.clear()
            module.training_step(batch, number)
            before, weights = weights, parameters(module)
            assert changed == {
                name.partition(".")[0] for name in weights if not torch.equal(before[name], weights[name])
            }
            assert bool(logged) == bool(changed) and ("train/discriminator" in logged) == (len(changed) == 2)
        assert module.global_step == 5 and [schedule.last_epoch for schedule in schedules] == [2, 1]
        used = (module.network.quantize.recent_counts() > 0).float().mean()
        assert logged["train/revived_codes"] == round(16 * (1 - float(used))) > 0
        assert logged["train/codebook_usage"] == used and 1 <= logged["train/codebook_perplexity"] <= 16
        assert logged["train/grad_norm"] > 0 and not any(
            p.grad is not None and p.grad.any() for p in module.parameters()
        )
        images, reconstructions = (torch.cat(parts) for parts in zip(*pairs[-2:], strict=True))
        expected = peak_signal_noise_ratio(reconstructions.clamp(-1, 1), images, data_range=2.0)
        assert logged["train/psnr"] == pytest.approx(float(expected), rel=1e-5)
        norms.append(logged["train/grad_norm_discriminator"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)  # fp16's gradients are unscaled before their norm is taken


def parameters(module: TokenizerModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def test_unused_codes_are_revived_once_the_record_is_full(batch, monkeypatch):
    module = tokenizer_module(revival=RevivalConfig(every_n_steps=2))
    module._trainer = SimpleNamespace(global_step=0)
    result, revived = module.network(module._images(batch)), {}
    # 8 images of 64 codes per step: a record of 64 codes is full after one step, one of 1536 after three.
    for codes in (64, 1536):
        for step in range(5):
            module.network.quantize.codebook_used = torch.full((codes,), 3.0)
            module._trainer.global_step = step
            revived[codes, step] = module._revive(result)
    assert {key: count for key, count in revived.items() if count} == {(64, 2): 15, (64, 4): 15, (1536, 4): 15}


@pytest.mark.parametrize("steps", [0, 4])
def test_a_training_without_its_adversarial_loss_is_refused(steps):
    assert_user_error(f"start_step is 4, but training ends after {steps} steps", with_adversary().check_length, steps)
    for length in (5, -1):
        with_adversary().check_length(length)
    tokenizer_module(adversarial=AdversarialConfig(weight=0, discriminator=PatchGANConfig(1, 8))).check_length(steps)
    tokenizer_module().check_length(steps)


def test_a_checkpoint_needs_a_discriminator_exactly_where_the_module_has_one():
    names = {False: "network.encoder.weight", True: "discriminator.main.weight"}
    for module, present in ((with_adversary(), True), (tokenizer_module(), False)):
        words = "checkpoint has no discriminator;" if present else "checkpoint has a discriminator, .* is null;"
        module.on_load_checkpoint({"state_dict": {names[False]: 0} | ({names[True]: 0} if present else {})})
        assert_user_error(words, module.on_load_checkpoint, {"state_dict": {names[not present]: 0}})


def test_results_name_the_number_of_images_and_raw_weights(batch):
    module = tokenizer_module()
    validate(module, batch)
    values = module.scores.compute()
    assert module.scores.named(raw=False) == {"psnr_4": values["psnr"], "ssim_4": values["ssim"]}
    assert set(module.scores.named(raw=True)) == {"psnr_4_raw", "ssim_4_raw"}
    module.scores.reset()
    assert int(module.scores.image_count.compute()) == 0 and not module.scores.counts.compute().any()


def test_lpips_in_validation_is_the_mean_over_images(batch):
    module = tokenizer_module()
    scores = ReconstructionScores(16, lambda reconstructions, images: (reconstructions - images).abs().mean((1, 2, 3)))
    images = module._images(batch)
    with torch.no_grad():
        for rows in (slice(0, 3), slice(3, 4)):
            result = module.network(images[rows])
            scores.update(images[rows], result, module._terms(images[rows], result))
        whole = module.network(images)
        terms = module._terms(images, whole)
    reconstructions = whole.images_BCHW.clamp(-1, 1)
    values = scores.compute()
    assert values["lpips"] == pytest.approx(float((reconstructions - images).abs().mean()), rel=1e-5)
    assert values["loss"] == pytest.approx(float(terms.loss), rel=1e-5)
    assert values["reconstruction"] == pytest.approx(float(terms.each["reconstruction"]), rel=1e-5)
    assert set(scores.named(raw=False)) == {"psnr_4", "ssim_4", "lpips_4"}


def test_the_smallest_image_of_a_discriminator_has_one_patch():
    size = next(size for size in range(8, 128, 4) if PatchGANConfig(num_layers=2).patches(size) == 1)
    for pixels, valid in ((size, True), (size - 4, False)):
        config = dataclasses.replace(TINY_VQ, image_size=pixels)
        adversarial = AdversarialConfig(discriminator=PatchGANConfig(num_layers=2, channels=8))
        arguments = (config, OptimizerConfig(), 8, TokenizerLoss(), adversarial)
        if valid:
            assert not TokenizerModule(*arguments).automatic_optimization
        else:
            assert_user_error(f"num_layers 2 leaves no patch of {pixels}x{pixels} pixels", TokenizerModule, *arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init_from": "x", "codebook_init": "data"}, "init_from brings a codebook"),
        ({"lpips_file": "x", "loss": TokenizerLoss(perceptual_weight=1.0, perceptual_file="y")}, "without LPIPS"),
    ],
)
def test_options_that_contradict_each_other(options, words):
    arguments = {"network": TINY_VQ, "optimizer": OptimizerConfig(), "global_batch_size": 8, "loss": TokenizerLoss()}
    assert_user_error(words, TokenizerModule, **(arguments | options))


def test_the_codebook_starts_from_the_first_batch(batch, monkeypatch):
    for init, step, number, starts in (
        ("data", 0, 0, True),
        ("data", 1, 0, False),
        ("data", 0, 1, False),
        ("random", 0, 0, False),
    ):
        module = tokenizer_module(codebook_init=init)
        module._trainer = SimpleNamespace(global_step=step)
        before = module.network.quantize.embedding.weight.detach().clone()
        module.on_train_batch_start(batch, number)
        after = module.network.quantize.embedding.weight.detach()
        assert torch.equal(before, after) != starts
        if starts:
            latent = module.network.latent(module._images(batch)).detach()
            rows = torch.nn.functional.normalize(latent, dim=1).movedim(1, -1).reshape(-1, latent.shape[1])
            assert ((after @ rows.T).amax(1) > 1 - 1e-5).all()


@pytest.mark.parametrize(("own", "section"), [(True, "model.adversarial.optimizer"), (False, "model.optimizer")])
def test_messages_name_the_section_of_the_optimizer_of_the_discriminator(capsys, own, section):
    optimizer = OptimizerConfig(warmup_steps=7) if own else None
    module = tokenizer_module(adversarial=dataclasses.replace(with_adversary().adversary.config, optimizer=optimizer))
    module.optimizer_config = OptimizerConfig(warmup_steps=7)
    with pytest.raises(UserError, match="the discriminator's gradient norm is nan at step 3") as error:
        finite = module.adversary.finite_steps
        finite.add(torch.tensor(math.nan), 3, SkippingAdamW(module.discriminator.parameters()))
    assert f"lower {section}.base_learning_rate or look at train/grad_norm_discriminator" in str(error.value)
    module.check_length(9)  # the adversarial loss starts at step 4
    message = f"warning: {section}.warmup_steps is 7, but the training of the discriminator ends after 5 steps"
    assert message in capsys.readouterr().out
