"""Images in the making, as an iterator."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from typing import Any

from torch import Tensor

from aim_lightning.pipeline.pipeline import AiMPipeline

# The fast decoder's memory serves one batch, and a request that Gradio cancels samples for some steps after that.
SAMPLING = threading.Lock()


def frames(pipeline: AiMPipeline, labels: list[int | str], **options: Any) -> Iterator[Tensor]:
    """Yield the images after each row of codes, missing codes in grey; the last ones are those of `generate`.

    A closed iterator stops the sampling at the next code.

    Args:
        pipeline: the networks.
        labels: class index or name of each image; all images are one batch.
        **options: fields of `SamplingOptions`.

    Yields:
        uint8 (B, 3, H, W) on the CPU, once per row of the grid of codes.

    Raises:
        UserError: as `AiMPipeline.generate`.
    """
    rows, parts, closed = pipeline.tokenizer.grid[0], SimpleQueue(), threading.Event()
    preview = pipeline.preview(lambda images: parts.put(images.cpu()))

    def on_step(step: int, codes_BT: Tensor) -> None:
        if closed.is_set():
            raise InterruptedError
        preview(step, codes_BT)

    def generate() -> Tensor:
        try:
            with SAMPLING:
                return pipeline.generate(labels, on_step=on_step, **options | {"batch_size": len(labels)})
        finally:
            parts.put(None)

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(generate)
        try:
            yield from islice(iter(parts.get, None), rows - 1)
            yield result.result()
        finally:
            closed.set()
