"""Every use of private names of Lightning and torchmetrics, checked with Lightning 2.6.6 and torchmetrics 1.9.0.

After an update of either library, read this file first. It imports neither of them.
"""

from typing import Any


def disable_signal_handlers(trainer: Any) -> None:
    """Keep Lightning from handling signals; `callbacks.training.stop_request` does it instead.

    Args:
        trainer: a Lightning trainer, before `fit` or `validate`.
    """
    # Its SIGUSR1 handler saves inside the handler and meets a barrier, which hangs when ranks are out of step.
    # Its SIGTERM handler exits with code 0, so that SLURM takes a preempted job for a complete one.
    trainer._signal_connector.register_signal_handlers = lambda: None
    # With several ranks, it also broadcasts rank 0's flag before each batch and waits for the GPU.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def logged_step(trainer: Any) -> int:
    """Return the step under which the trainer logs metrics now: the optimizer steps done."""
    # `trainer.global_step` counts the steps of all optimizers, and is 0 in `validate`.
    if trainer.state.fn == "fit":
        return trainer.datamodule.steps
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def log_steps_done(trainer: Any) -> None:
    """Make the trainer log metrics under `logged_step`.

    Args:
        trainer: a Lightning trainer, before `fit` or `validate`.
    """
    # Lightning counts a step only after it has logged it: step 700 would appear as 699 next to checkpoint 700.
    log_metrics = trainer._logger_connector.log_metrics

    def log(metrics: dict[str, Any], step: int | None = None) -> None:
        if metrics and step is None and "step" not in metrics:
            metrics, step = {**metrics, "epoch": trainer.current_epoch}, logged_step(trainer)
        log_metrics(metrics, step)

    trainer._logger_connector.log_metrics = log


def set_logged_step(trainer: Any, step: int) -> None:
    """Set the step under which the trainer logs metrics.

    Args:
        trainer: a Lightning trainer.
        step: optimizer steps, whatever the number of optimizers.
    """
    # Lightning has no public way to set the x-axis, which it would restart at 0 in `validate`.
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def dump_checkpoint(trainer: Any) -> dict[str, Any]:
    """Return the content of a checkpoint; a collective.

    Args:
        trainer: a Lightning trainer during `fit`.
    """
    # `trainer.save_checkpoint` also writes, then meets a barrier: a rank whose write fails leaves the others there.
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def mark_batch_unread(fit_loop: dict[str, Any]) -> None:
    """Remove the batch before which a checkpoint is written from the batches that Lightning counts as started.

    Args:
        fit_loop: the fit loop's state in a checkpoint; changed in place.
    """
    progress = fit_loop["epoch_loop.batch_progress"]
    for counters in (progress["total"], progress["current"]):
        counters["ready"] = counters["completed"]
    progress["is_last_batch"] = False


def set_batch_progress(fit_loop: dict[str, Any], total: int, current: int) -> None:
    """Set the numbers of completed batches in a checkpoint.

    Args:
        fit_loop: the fit loop's state in a checkpoint; changed in place.
        total: batches since the start of the run.
        current: batches of the current epoch.
    """
    progress = fit_loop["epoch_loop.batch_progress"]
    progress["total"] = dict.fromkeys(progress["total"], total)
    progress["current"] = dict.fromkeys(progress["current"], current)


def completed_batches(fit_loop: dict[str, Any]) -> int:
    """Return the number of completed batches of the current epoch in a checkpoint.

    Args:
        fit_loop: the fit loop's state in a checkpoint.
    """
    return fit_loop["epoch_loop.batch_progress"]["current"]["completed"]


def reopen_epoch(fit_loop: dict[str, Any], epoch: int) -> None:
    """Set an epoch as started and not completed in a checkpoint.

    A training that ends within an epoch closes it for Lightning, which would continue with the next one.

    Args:
        fit_loop: the fit loop's state in a checkpoint; changed in place.
        epoch: 0 for the first one.
    """
    for counters in (fit_loop["epoch_progress"]["total"], fit_loop["epoch_progress"]["current"]):
        counters |= {"ready": epoch + 1, "started": epoch + 1, "processed": epoch, "completed": epoch}


def set_writer(logger: Any, make_writer: Any) -> None:
    """Replace the writer of a TensorBoard logger.

    Args:
        logger: a `TensorBoardLogger` that is not used yet.
        make_writer: called with the log directory and the logger's `flush_secs` and `filename_suffix`.
    """
    options = {name: value for name, value in logger._kwargs.items() if name in ("flush_secs", "filename_suffix")}
    # `logger.experiment` would create the default writer, and with it a file, on first access.
    logger._experiment = make_writer(logger.log_dir, **options)


def drop_cached_result(metric: Any) -> None:
    """Make the next `compute` of a torchmetrics metric compute again.

    Args:
        metric: changed outside its `update`, which would drop the cached result.
    """
    metric._computed = None
