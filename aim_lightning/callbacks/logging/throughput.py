"""Training speed and learning rate."""

import time

from lightning.pytorch import Callback, LightningModule, Trainer

TERA = 1e12


class Throughput(Callback):
    """Log perf/images_per_s, perf/tokens_per_s, perf/model_tflops_per_s and train/learning_rate.

    Averages over all devices and the steps since the last logged line, without validation. Model FLOP are those of the
    network's definition (6 per weight and use). They leave out recomputation and padding, and in stage 1 also
    discriminator and LPIPS.
    """

    def __init__(self) -> None:
        self.images, self.seconds, self.started = 0, 0.0, None
        self.learning_rate = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        # Read before the step: afterwards the schedule has set the next step's rate.
        self.learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        if self.started is None:
            self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        plan = trainer.datamodule.plan
        self.images += plan.micro_batch_size * plan.world_size
        boundary = (batch_idx + 1) % plan.accumulate == 0
        if boundary and trainer.datamodule.steps % trainer.log_every_n_steps == 0:
            # The clock stops before the log, whose own time belongs to no step.
            self._pause()
            self._log(trainer, pl_module)
            self.images, self.seconds = 0, 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause()

    def _pause(self) -> None:
        if self.started is not None:
            self.seconds += time.perf_counter() - self.started
            self.started = None

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rate = self.images / max(self.seconds, 1e-9)
        rows, columns = getattr(pl_module.network, "grid", (0, 0))
        # A tokenizer has a grid of codes, AiM a number of codes.
        tokens = getattr(pl_module.network.config, "num_tokens", rows * columns)
        values = {"perf/images_per_s": rate, "perf/tokens_per_s": rate * tokens}
        values["train/learning_rate"] = self.learning_rate
        if hasattr(pl_module.network, "flops_per_image"):
            values["perf/model_tflops_per_s"] = rate * pl_module.network.flops_per_image() / TERA
        self.log_dict(values)
