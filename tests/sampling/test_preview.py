"""Previews of images while they are sampled."""

from itertools import pairwise

import torch
from PIL import Image, ImageSequence
from sampling.test_pipeline import LABELS, pipeline  # noqa: F401

from aim_lightning.utils.grid import save_gif

GREY = 128


def test_rows_appear_as_they_are_sampled(pipeline):  # noqa: F811
    frames = []
    images = pipeline.generate(LABELS, seed=1, batch_size=3, on_step=pipeline.preview(frames.append))
    rows, height = 2, 4
    assert [len(frame) for frame in frames] == [3, 3, 2, 2]
    first, last = (torch.cat(frames[row::rows]) for row in range(rows))
    assert torch.equal(last, images)
    assert (first[:, :, height // 2 :] == GREY).all()
    assert first[:, :, : height // 2].float().std() > 1


def test_every_n_codes_and_the_last(pipeline):  # noqa: F811
    frames = []
    pipeline.generate([1], on_step=pipeline.preview(frames.append, every=3))
    assert [int((frame == GREY).all(1).sum()) for frame in frames] == [4, 0]  # after 3 and 4 codes of 2x2 pixels
    frames.clear()
    pipeline.generate([1], decoder="fast", on_step=pipeline.preview(frames.append, every=1))
    grey = [int((frame == GREY).all(1).sum()) for frame in frames]
    assert len(grey) == 4 and all(a - b >= 3 for a, b in pairwise(grey))


def test_the_animation_is_written_completely(tmp_path):
    frames = [torch.full((3, 8, 8), value, dtype=torch.uint8) for value in (10, 100, 250)]
    save_gif(frames, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as animation:
        shown = ((frame.convert("RGB"), frame.info["duration"]) for frame in ImageSequence.Iterator(animation))
        shown = [(frame.getpixel((3, 3))[0], duration) for frame, duration in shown]
        assert animation.info["loop"] == 0
    assert shown == [(10, 150), (100, 150), (250, 2000)]
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]
