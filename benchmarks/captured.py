"""Complete sequences of the plain decoder as CUDA graphs, so that Python launches no kernel."""

import torch
from torch import Tensor

from aim_lightning.models import AutoregressiveNetwork
from aim_lightning.sampling import SamplingOptions
from aim_lightning.sampling.filters import sample_codes
from aim_lightning.sampling.plain_decoder import PlainDecoder
from aim_lightning.utils.random import hash_uniform

STEPS_PER_GRAPH = 64  # the next graph is launched while one runs


class CapturedSequence:
    """Sample codes for fixed labels and options by replaying the captured steps of the plain decoder.

    Every step has a position of its own in the graphs, so that attention reads the visible keys only. On a CPU the
    steps run directly.

    Args:
        model: the network, in evaluation mode.
        labels_B: int64 classes.
        options: of sampling, apart from `seed`.
        graph: capture the steps (GPU only).
    """

    @torch.no_grad()
    def __init__(
        self, model: AutoregressiveNetwork, labels_B: Tensor, options: SamplingOptions, graph: bool = True
    ) -> None:
        device, self.num_tokens = model.lm_head.weight.device, model.config.num_tokens
        self.model, self.labels_B, self.options = model, labels_B.to(device), options
        self.codes_BL = torch.zeros(len(labels_B), self.num_tokens, dtype=torch.int64, device=device)
        self.uniform_BL = torch.zeros_like(self.codes_BL, dtype=torch.float64)
        self.graphs: list[torch.cuda.CUDAGraph] = []
        if graph and device.type == "cuda":
            self._capture()

    @torch.no_grad()
    def __call__(self, seed: int = 0) -> Tensor:
        """Return the codes of images 0 to B - 1, int64 (B, num_tokens)."""
        images = torch.arange(len(self.codes_BL), device=self.codes_BL.device)
        steps = torch.arange(self.num_tokens, device=self.codes_BL.device)
        self.uniform_BL.copy_(hash_uniform("sample", seed, images[:, None], steps))
        for graph in self.graphs:
            graph.replay()
        if not self.graphs:
            self.advance(0, self.num_tokens)
        return self.codes_BL.clone()

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # all lengths once, so that nothing is compiled or loaded during the capture
            self.advance(0, self.num_tokens)
        torch.cuda.current_stream().wait_stream(stream)
        pool = torch.cuda.graph_pool_handle()  # caches of the first graph are read by the others
        for first in range(0, self.num_tokens, STEPS_PER_GRAPH):
            self.graphs.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(self.graphs[-1], pool=pool, capture_error_mode="thread_local"):
                self.advance(first, min(first + STEPS_PER_GRAPH, self.num_tokens))

    @torch.no_grad()
    def advance(self, first: int, end: int) -> None:
        """Sample the codes of some steps without graphs; step 0 starts a sequence."""
        for step in range(first, end):
            if step == 0:
                self.decoder = PlainDecoder(self.model, self.labels_B, self.options.scales(self.num_tokens), 0)
            logits_BV = self.decoder.logits(self.codes_BL[:, step - 1] if step else None, step)
            self.codes_BL[:, step] = sample_codes(logits_BV, self.uniform_BL[:, step], self.options.filters())
