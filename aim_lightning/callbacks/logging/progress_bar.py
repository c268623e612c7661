"""Progress of training and validation: one bar in a terminal, plain lines in a log."""

from time import perf_counter

from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.modules.optim import total_steps
from aim_lightning.utils.progress import ProgressBar as Bar


class RunProgressBar(Callback):
    """Show the step of the whole training, the time left, loss and images/s; in `validate`, the batches.

    In a log, lines come at steps that are logged, at most one per minute. The loss is read from the device only there:
    reading it at every step would make the processor wait for the GPU.
    """

    def __init__(self) -> None:
        self.bar: Bar | None = None
        self.step = 0
        # Training time without validation, for images/s.
        self.started, self.seconds, self.started_step = 0.0, 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step where this process continues."""
        total, shown = total_steps(trainer, trainer.datamodule), trainer.is_global_zero
        self.step = self.started_step = trainer.global_step
        self.started, self.seconds = perf_counter(), 0.0
        self.bar = Bar("training", total if total >= 0 else None, "steps", self.step, shown, leave=True, early=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        """Advance after an optimizer step."""
        if trainer.global_step == self.step or not trainer.is_global_zero:
            return
        self.step = trainer.global_step
        if self.step % trainer.log_every_n_steps == 0:
            self.bar.advance(self.step - self.bar.done, self._note(trainer))
        elif self.bar.in_terminal:
            self.bar.advance(self.step - self.bar.done)

    def _note(self, trainer: Trainer) -> str:
        plan, now = trainer.datamodule.plan, perf_counter()
        images = (self.step - self.started_step) * plan.micro_batch_size * plan.accumulate * plan.world_size
        rate = images / max(self.seconds + now - self.started, 1e-9)
        self.started, self.seconds, self.started_step = now, 0.0, self.step
        loss = trainer.callback_metrics.get("train/loss")
        return f"{rate:.0f} images/s" if loss is None else f"loss {float(loss):.4f}, {rate:.0f} images/s"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar; in a log, print the last step."""
        if self.bar is not None:
            self.bar.advance(self.step - self.bar.done)
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that messages start on a line of their own."""
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training, or open the bar of `validate`."""
        self.seconds += perf_counter() - self.started
        if trainer.state.fn == "validate":
            self.bar = Bar("validation", sum(trainer.num_val_batches), "batches", shown=trainer.is_global_zero)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Advance in `validate`, and close the bar before the bars of callbacks that score samples."""
        if trainer.state.fn == "validate" and self.bar is not None:
            self.bar.advance(1)
            if self.bar.done == self.bar.total:
                self._close()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of training again."""
        self.started = perf_counter()
        if trainer.state.fn == "validate":
            self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.__exit__()
            self.bar = None
