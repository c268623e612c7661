"""The fast decoder: static memory, one captured graph a shape, options as tensors."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aim_lightning.models import AiM
from aim_lightning.sampling.fast.buffers import Buffers
from aim_lightning.sampling.fast.torch_step import TorchStep
from aim_lightning.sampling.fast.weights import StaticWeights
from aim_lightning.sampling.filters import refuse_diverged


class FastDecoder:
    """Draws codes for `images` labels at a time; everything else may change from call to call.

    Args:
        model: gives sizes and device; `run` takes the network itself, whose weights are read anew at every call.
        images: labels a call.
        guided: whether the null-class branch runs.
        dtype: bfloat16, or float32 for the plain decoder's codes.
        graph: capture the step (GPU only).
    """

    def __init__(self, model: AiM, images: int, guided: bool, dtype: torch.dtype, graph: bool = True) -> None:
        self.config = model.config
        self.weights = StaticWeights(model, dtype)
        self.buffers = Buffers(model, images, guided, dtype)
        self._step = self._build_step()
        self._replay: Callable[[], None] | None = None
        self._capturing = graph and self.buffers.codes_BT.is_cuda

    def _build_step(self) -> Callable[[], None]:
        if not self.buffers.codes_BT.is_cuda:
            return TorchStep(self.config, self.weights, self.buffers)
        from aim_lightning.sampling.fast.triton_step import TritonStep  # imports triton, which a CPU may lack

        return TritonStep(self.config, self.weights, self.buffers)

    @torch.no_grad()
    def run(
        self,
        model: AiM,
        labels_B: Tensor,
        uniform_BT: Tensor,
        *,
        scales: Sequence[float],
        temperature: float,
        top_k: int,
        top_p: float,
        position_offset: int = 0,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """codes_BT, int64, in memory of their own; options as `aim_lightning.sampling.generate`.

        Args:
            model: a network of the sizes that the decoder was built for.
            scales: guidance of each step; unused without guidance.

        Raises:
            UserError: the network's logits were not finite at some step.
        """
        self.weights.refresh(model)
        self._condition(model, labels_B)
        self._set_options(uniform_BT, scales, temperature, top_k, top_p, position_offset)
        step = self._captured() if self._capturing else self._step
        for t in range(self.config.num_tokens):
            step()
            if on_step is not None:
                on_step(t, self.buffers.codes_BT[:, : t + 1])
        refuse_diverged(self.buffers.diverged)
        return self.buffers.codes_BT.clone()

    def _condition(self, model: AiM, labels_B: Tensor) -> None:
        """Class embedding and modulation of every layer, once a sequence."""
        if self.buffers.guided:
            labels_B = torch.cat((labels_B, torch.full_like(labels_B, model.null_class)))
        condition = model.backbone.condition(labels_B)
        self.buffers.start_MD.copy_(condition.start_BD)
        if self.buffers.layer_rows is not None:
            for own, rows in zip(self.buffers.layer_rows, condition.layers, strict=True):
                own.copy_(rows)
            self.buffers.final_rows[0].copy_(condition.final_B2D)

    def _set_options(self, uniform_BT, scales, temperature, top_k, top_p, position_offset) -> None:
        buffers = self.buffers
        buffers.uniform_BT.copy_(uniform_BT)
        buffers.scale_T.copy_(torch.tensor(scales, dtype=torch.float32))
        buffers.temperature.fill_(temperature)
        buffers.top_k.fill_(top_k)
        buffers.top_p.fill_(top_p)
        buffers.offset.fill_(position_offset)
        buffers.step.zero_()
        buffers.diverged.zero_()

    def _captured(self) -> Callable[[], None]:
        """The step as a graph, captured at the first call."""
        if self._replay is None:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # compiles the kernels and sets up cuBLAS outside the capture
                self._step()
                self._step()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step()
            self._replay = graph.replay
            self.buffers.step.zero_()
        return self._replay
