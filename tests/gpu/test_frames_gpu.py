"""Images in the making on an NVIDIA GPU: the decoder runs in another thread at every call."""

import pytest
import torch
from gpu.test_pixels_gpu import pipeline

from aim_lightning.pipeline import frames

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("decoder", ["plain", "fast"])
def test_frames_from_several_threads_end_with_what_generate_returns(decoder):
    made, labels = pipeline(), [0, 3, 9]
    options = {"cfg_scale": 2.0, "seed": 5, "decoder": decoder, "pixel_precision": "float32"}
    expected = made.generate(labels, batch_size=3, **options)
    for _ in range(3):
        shown = list(frames(made, labels, **options))
        assert len(shown) == made.tokenizer.grid[0] and {images.device.type for images in shown} == {"cpu"}
        assert torch.equal(shown[-1], expected)
    images = frames(made, labels, **options)
    next(images)
    images.close()
    assert torch.equal(made.generate(labels, batch_size=3, **options), expected)
