"""CUDA graph of a micro-step: the network's forward and backward are replayed with one launch from the host."""

from typing import Any

import torch
from torch import Tensor

from aim_lightning.models import AiM, AutoregressiveNetwork
from aim_lightning.models.aim.memory import bytes_per_image

WARM_UP = 3
# Images of a micro-batch. Larger ones keep the GPU busy without a graph, whose memory validation could not use.
LARGEST = 64
MEMORY_SHARE = 0.25  # of the GPU's memory that a graph may keep


def refusal(network: AutoregressiveNetwork, images: int, is_alone: bool, precision: str) -> str | None:
    """Return why a micro-step cannot be a CUDA graph; None when it can.

    Args:
        network: on its device.
        images: of a micro-batch.
        is_alone: no other process takes part, and nothing wraps the module.
        precision: of the trainer.
    """
    config, device = network.config, network.lm_head.weight.device
    if torch.is_anomaly_enabled():
        return "trainer.detect_anomaly reads values during the backward"
    if precision.startswith("16"):
        return "fp16 scales the loss by a factor that changes"
    if network.backend != "triton":
        return f"the backend is {network.backend}, not triton"
    if not is_alone:
        return "several processes average gradients during the backward"
    if images > LARGEST:
        return f"the micro-batch has more than {LARGEST} images"
    if config.token_dropout or config.mixer_dropout or config.mlp_dropout:
        return "dropout needs new random numbers in every step"
    if network.backbone.gradient_checkpointing != "none":
        return "gradient_checkpointing is set"
    if images * bytes_per_image(config) > MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory:
        return f"it would keep more than {MEMORY_SHARE:.0%} of the GPU's memory, which validation needs"
    return None


class GraphedLoss:
    """Compute the loss and its gradients by replaying a CUDA graph; bit-identical to the eager step.

    The gradients are sums in memory of this object. The backward of the returned loss makes them the gradients of the
    parameters. Weights may change in place between calls, but may not be replaced.

    Args:
        network: AiM on a GPU.
        accumulate: micro-batches of an optimizer step; the gradients are divided by it.
    """

    def __init__(self, network: AiM, accumulate: int) -> None:
        self.network, self.accumulate = network, accumulate
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, codes_BL: Tensor, labels_B: Tensor, is_first: bool) -> Tensor:
        """Return the mean cross-entropy, nats.

        Args:
            codes_BL: int64; every call needs the same shape.
            labels_B: int64.
            is_first: True for the first micro-batch of an optimizer step.
        """
        if self.graph is None:
            self._capture(codes_BL, labels_B)
        self.codes.copy_(codes_BL)
        self.labels.copy_(labels_B)
        if is_first:
            torch._foreach_zero_(self.gradients)
        self.graph.replay()
        return _ReplayedLoss.apply(self.anchor, self)

    def _capture(self, codes_BL: Tensor, labels_B: Tensor) -> None:
        self.codes, self.labels = codes_BL.clone(), labels_B.clone()
        self.anchor = torch.zeros((), device=codes_BL.device, requires_grad=True)
        # Kernels are compiled before the capture, on a stream of its own, as PyTorch requires.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._micro_step()
        torch.cuda.current_stream().wait_stream(stream)
        self.parameters = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        self.gradients = [parameter.grad for parameter in self.parameters]
        self.graph = torch.cuda.CUDAGraph()
        # The loader's thread pins memory meanwhile, which the default mode forbids.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.loss = self._micro_step()

    def _micro_step(self) -> Tensor:
        dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        # Without autocast's cache: a copy of a weight from the capture must not serve later steps.
        with torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False):
            loss = self.network.loss(self.codes, self.labels)
        with torch.autocast("cuda", enabled=False):
            (loss / self.accumulate).backward()
        return loss.detach()


class _ReplayedLoss(torch.autograd.Function):
    """Return the loss of a replay; the backward sets the gradients that the replay computed."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, graphed: GraphedLoss) -> Tensor:
        ctx.graphed = graphed
        return graphed.loss.clone()

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple:
        # `zero_grad` comes between forward and backward, and may have removed them.
        for parameter, gradient in zip(ctx.graphed.parameters, ctx.graphed.gradients, strict=True):
            parameter.grad = gradient
        return None, None
