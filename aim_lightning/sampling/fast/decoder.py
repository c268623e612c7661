"""The fast decoder: static memory, captured graphs per shape, options as tensors."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from aim_lightning.models import AiM
from aim_lightning.sampling.fast.buffers import Buffers
from aim_lightning.sampling.fast.call import Call
from aim_lightning.sampling.fast.kernel_configs import stored_codes
from aim_lightning.sampling.fast.static_weights import StaticWeights
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
        step, on_gpu = TorchStep, model.lm_head.weight.is_cuda
        if on_gpu:
            from aim_lightning.sampling.fast.triton_step import TritonStep as step  # triton may lack on a CPU
        stored = stored_codes(self.config, images * (2 if guided else 1), dtype) if on_gpu else None
        self.buffers = Buffers(model, images, guided, dtype, stored, packed=on_gpu and dtype == torch.bfloat16)
        self._step = step(self.config, self.weights, self.buffers)
        self._call = Call(images, self.config.num_tokens, self.buffers.codes_BT.device)
        self._replays: dict[int | str, Callable[[], None]] = {}
        self._capturing = graph and on_gpu
        self._begin: Callable[[], None] | None = None  # the captured work before the first step
        self._sources: tuple | None = None  # what that work read

    @torch.no_grad()
    def run(
        self,
        model: AiM,
        labels_B: Tensor,
        indices_B: Tensor,
        *,
        seed: int,
        scales: Sequence[float],
        filters: Filters,
        position_offset: int = 0,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Return codes_BT, int64, in newly allocated memory; options as `aim_lightning.sampling.generate`.

        Args:
            model: a network of the sizes that the decoder was built for.
            labels_B: int64 classes.
            indices_B: int64 numbers of the images, which with the seed determine the random choices.
            seed: of the random choices, 0 to 2**63 - 1.
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
            top_k = min(filters.top_k, self.config.vocab_size)
            reals = [filters.temperature, filters.top_p, *scales]
            self._call.set(labels_B, indices_B, [seed, top_k, position_offset], reals)
            self._prepare(model)
            done = 0
            for steps in portions(self.config.num_tokens, 1 if on_step else STEPS_PER_GRAPH):
                if done and self.buffers.codes_per_chunk and done % self.buffers.codes_per_chunk == 0:
                    self._run("chunk", self._step.end_chunk)
                self._advance(steps)
                done += steps
                if on_step is not None:
                    on_step(done - 1, codes_BT[:, :done].clone())  # the next call overwrites the memory
            codes_BT = codes_BT.clone()
            refuse_diverged(self.buffers.diverged)
            return codes_BT

    def _prepare(self, model: AiM) -> None:
        """Do all work before the first step: its graph is captured when the same tensors are read a second time.

        The graph contains the addresses of the network's parameters and the precision of products. A change of these
        (an EMA swap) ends its use.
        """
        parameters = [(parameter.data_ptr(), parameter.dtype) for parameter in model.parameters()]
        sources = (torch.get_float32_matmul_precision(), *parameters)
        with _products(self.buffers.dtype), torch.autocast(self.buffers.codes_BT.device.type, enabled=False):
            if not self._capturing or sources != self._sources:
                self._begin, self._sources = None, sources
                self._start(model)
                return
            if self._begin is None:
                self._begin = _captured(lambda: self._start(model))
        self._begin()

    def _start(self, model: AiM) -> None:
        """Copy options and weights, and compute what stays the same for a sequence."""
        buffers, call = self.buffers, self._call
        labels_B = call.to(buffers)
        self.weights.refresh(model)
        if buffers.guided:
            labels_B = torch.cat((labels_B, torch.full_like(labels_B, model.null_class)))
        condition = model.backbone.condition(labels_B)
        buffers.start_MD.copy_(condition.start_BD)
        if buffers.layer_rows is not None:
            buffers.layer_rows.copy_(torch.stack(condition.layers))
            buffers.final_rows[0].copy_(condition.final_B2D)
        self._step.prepare()

    def _advance(self, steps: int) -> None:
        """Sample the codes of the next steps."""
        self._run(steps, lambda: [self._step() for _ in range(steps)])

    def _run(self, name: int | str, work: Callable[[], object]) -> None:
        """Do work of the device, by a graph that the first call captures under this name."""
        if not self._capturing:
            with _products(self.buffers.dtype):
                work()
            return
        if name not in self._replays:
            with _products(self.buffers.dtype):  # a graph keeps the precision it was captured with
                self._replays[name] = self._capture(work)
        self._replays[name]()

    def _capture(self, work: Callable[[], object]) -> Callable[[], None]:
        """Capture work as a graph; it reads from memory which steps it is for."""
        if not self._replays:
            self._warm_up()
        return _captured(work)

    def _warm_up(self) -> None:
        """Run the first step outside the capture to compile the kernels and set up cuBLAS; it is then run again."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._step()
                if self.buffers.codes_per_chunk:
                    self._step.end_chunk()
                self.buffers.set_step(0)
                self._step.prepare()
        torch.cuda.current_stream().wait_stream(stream)


def _captured(work: Callable[[], object]) -> Callable[[], None]:
    """Capture work that ran once before as a graph, and return its replay."""
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as a loader's that pins memory, may call CUDA meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


def _products(dtype: torch.dtype) -> AbstractContextManager:
    """Return a context in which float32 products never use TF32, even if the process allows it elsewhere."""
    return exact_products() if dtype == torch.float32 else nullcontext()


def portions(count: int, most: int) -> list[int]:
    """Split a count into portions of `most`, and ones for the rest: two graphs serve any count."""
    return [most] * (count // most) + [1] * (count % most)
