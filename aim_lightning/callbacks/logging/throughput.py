"""Training speed and learning rate."""

import re
import time

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

TERA = 1e12
# Dense bf16 TFLOP/s with float32 accumulation, from data sheets, by words of the device's name; the first match counts.
PEAK_TFLOPS = {
    "B200": 2250, "GH200": 989, "H200": 989, "H100 HBM3": 989, "H100 PCIe": 756, "H100 NVL": 835, "H800": 989,
    "A100": 312, "A800": 312, "A40": 150, "A30": 165, "A10": 125, "A6000": 155, "RTX 6000 Ada": 364, "L40S": 362,
    "L40": 181, "L4": 121, "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip


def peak_tflops(name: str) -> float | None:
    """Return the dense bf16 peak of a device in TFLOP/s; None if it is unknown.

    Args:
        name: as `torch.cuda.get_device_name` returns it.
    """
    words = set(re.split(r"[^A-Za-z0-9]+", name))
    if words & {"MIG", "Laptop"}:  # slower than the device of that name
        return None
    return next((peak for key, peak in PEAK_TFLOPS.items() if set(key.split()) <= words), None)


def peak_tflops_of(device: torch.device) -> float | None:
    """Return the dense bf16 peak of a torch device in TFLOP/s; None for a CPU and unknown GPUs."""
    return peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


class Throughput(Callback):
    """Log perf/images_per_s, perf/tokens_per_s, perf/model_tflops_per_s, perf/mfu and train/learning_rate.

    Averages over all devices and the steps since the last logged line, without validation. Model FLOP are those of the
    network's definition (6 per weight and use). They leave out recomputation and padding, and in stage 1 also
    discriminator and LPIPS. perf/mfu is their share of the dense bf16 peak of the devices, omitted for unknown ones.
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
            self._pause(pl_module.device)
            self._log(trainer, pl_module)
            self.images, self.seconds = 0, 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause(pl_module.device)

    def _pause(self, device: torch.device) -> None:
        if self.started is not None:
            # The steps are still running on the GPU. This is the only wait between two logged lines.
            if device.type == "cuda":
                torch.cuda.synchronize(device)
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
            tflops = values["perf/model_tflops_per_s"] = rate * pl_module.network.flops_per_image() / TERA
            if peak := peak_tflops_of(pl_module.device):
                values["perf/mfu"] = tflops / (peak * trainer.world_size)
        self.log_dict(values)
