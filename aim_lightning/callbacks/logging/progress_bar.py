"""Progress of training and validation: one bar in a terminal, plain lines in a log."""

from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.modules.optim import total_steps
from aim_lightning.utils.progress import ProgressBar

NOTES = {"train/loss": "loss {:.4f}", "perf/images_per_s": "{:.0f} images/s"}


class RunProgressBar(Callback):
    """Show the step of the whole training, the time left, loss and images/s; in `validate`, the batches.

    In a log, lines appear at steps that are logged, at most one per minute. Metrics are read from the device only then:
    reading them at every step would make the processor wait for the GPU. Between logged steps that are over two minutes
    apart, lines without metrics appear.
    """

    def __init__(self) -> None:
        self.bar: ProgressBar | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step where this process continues."""
        total, done, shown = total_steps(trainer, trainer.datamodule), trainer.global_step, trainer.is_global_zero
        self.bar = ProgressBar("training", total if total >= 0 else None, "steps", done, shown, leave=True, early=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        """Advance after an optimizer step."""
        new_steps = trainer.global_step - self.bar.done
        if not new_steps or not trainer.is_global_zero:
            return
        is_logged = trainer.global_step % trainer.log_every_n_steps == 0
        metrics = trainer.callback_metrics if is_logged else {}
        texts = [text.format(float(metrics[name])) for name, text in NOTES.items() if name in metrics]
        self.bar.advance(new_steps, ", ".join(texts), intervals=1 if is_logged else 2)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar; in a log, print the last step."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that messages start on a line of their own."""
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar of `validate`."""
        if trainer.state.fn == "validate":
            self.bar = ProgressBar("validation", sum(trainer.num_val_batches), "batches", shown=trainer.is_global_zero)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Advance in `validate`, and close the bar before the bars of callbacks that score samples."""
        if trainer.state.fn == "validate" and self.bar is not None:
            self.bar.advance(1)
            if self.bar.done == self.bar.total:
                self._close()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar of `validate`."""
        if trainer.state.fn == "validate":
            self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.__exit__()
            self.bar = None
