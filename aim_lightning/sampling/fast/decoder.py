"""The fast decoder: static memory, one captured graph per shape, options as tensors."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from aim_lightning.models import AiM
from aim_lightning.sampling.fast.buffers import Buffers, StaticWeights
from aim_lightning.sampling.fast.torch_step import TorchStep
from aim_lightning.sampling.filters import Filters, refuse_diverged
from aim_lightning.utils.precision import exact_products

# Between two graphs the GPU waits for Python; longer graphs take longer to capture.
STEPS_PER_GRAPH = 8


class FastDecoder:
    """Sample codes for a fixed number of labels; everything else may change from call to call.

    Args:
        model: gives sizes and device; `run` takes the network itself and reads its weights at every call.
        images: labels per call.
        guided: whether the null-class branch runs.
        dtype: bfloat16, or float32 for the plain decoder's codes.
        graph: capture steps (GPU only).
    """

    def __init__(self, model: AiM, images: int, guided: bool, dtype: torch.dtype, graph: bool = True) -> None:
        self.config = model.config
        self.weights = StaticWeights(model, dtype)
        self.buffers = Buffers(model, images, guided, dtype)
        step = TorchStep
        if self.buffers.codes_BT.is_cuda:
            from aim_lightning.sampling.fast.triton_step import TritonStep as step  # triton may lack on a CPU
        self._step: Callable[[], None] = step(self.config, self.weights, self.buffers)
        self._replays: dict[int, Callable[[], None]] = {}
        self._capturing = graph and self.buffers.codes_BT.is_cuda

    @torch.no_grad()
    def run(
        self,
        model: AiM,
        labels_B: Tensor,
        uniform_BT: Tensor,
        *,
        scales: Sequence[float],
        filters: Filters,
        position_offset: int = 0,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Return codes_BT, int64, in newly allocated memory; options as `aim_lightning.sampling.generate`.

        Args:
            model: a network of the sizes that the decoder was built for.
            labels_B: int64 classes on the network's device.
            uniform_BT: one random number in [0, 1) per code, float64.
            scales: guidance of each step; unused without guidance.
            filters: options of each random choice, those of FAST_FILTERS.
            position_offset: 1 = positions of the published decoder.
            on_step: called after each step with (step, codes so far).

        Raises:
            UserError: the network's logits were not finite at some step.
        """
        codes_BT = self.buffers.codes_BT
        # Kernels start on the current device, which may be another than the network's.
        with torch.cuda.device(codes_BT.device) if codes_BT.is_cuda else nullcontext():
            self.weights.refresh(model)
            with _products(self.buffers.dtype):
                self._condition(model, labels_B)
            self._set_options(uniform_BT, scales, filters, position_offset)
            done = 0
            for steps in portions(self.config.num_tokens, 1 if on_step else STEPS_PER_GRAPH):
                self._advance(steps)
                done += steps
                if on_step is not None:
                    on_step(done - 1, codes_BT[:, :done].clone())  # the next call overwrites the memory
            refuse_diverged(self.buffers.diverged)
            return codes_BT.clone()

    def _condition(self, model: AiM, labels_B: Tensor) -> None:
        """Compute the class embedding and the modulation of every layer, once per sequence."""
        if self.buffers.guided:
            labels_B = torch.cat((labels_B, torch.full_like(labels_B, model.null_class)))
        condition = model.backbone.condition(labels_B)
        self.buffers.start_MD.copy_(condition.start_BD)
        if self.buffers.layer_rows is not None:
            self.buffers.layer_rows.copy_(torch.stack(condition.layers))
            self.buffers.final_rows[0].copy_(condition.final_B2D)

    def _set_options(self, uniform_BT, scales, filters: Filters, position_offset: int) -> None:
        buffers = self.buffers
        # Values go into tensors that a graph reads: no option is part of the graph.
        buffers.uniform_BT.copy_(uniform_BT)
        buffers.scale_T.copy_(torch.tensor(scales, dtype=torch.float32))
        buffers.temperature.fill_(filters.temperature)
        buffers.top_k.fill_(min(filters.top_k, self.config.vocab_size))
        buffers.top_p.fill_(filters.top_p)
        buffers.offset.fill_(position_offset)
        buffers.step.zero_()
        buffers.diverged.zero_()

    def _advance(self, steps: int) -> None:
        """Sample the codes of the next steps."""
        if not self._capturing:
            with _products(self.buffers.dtype):
                for _ in range(steps):
                    self._step()
            return
        if steps not in self._replays:
            with _products(self.buffers.dtype):  # a graph keeps the precision it was captured with
                self._replays[steps] = self._capture(steps)
        self._replays[steps]()

    def _capture(self, steps: int) -> Callable[[], None]:
        """Capture a number of steps as a graph; it reads from memory which steps they are."""
        if not self._replays:
            self._warm_up()
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as a loader's that pins memory, may call CUDA meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(steps):
                self._step()
        return graph.replay

    def _warm_up(self) -> None:
        """Run the first step outside the capture to compile the kernels and set up cuBLAS; it is then run again."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._step()
                self.buffers.step.zero_()
        torch.cuda.current_stream().wait_stream(stream)


def _products(dtype: torch.dtype) -> AbstractContextManager:
    """Return a context in which float32 products never use TF32, even if the process allows it elsewhere."""
    return exact_products() if dtype == torch.float32 else nullcontext()


def portions(count: int, most: int) -> list[int]:
    """Split a count into portions of `most`, and ones for the rest: two graphs serve any count."""
    return [most] * (count // most) + [1] * (count % most)
