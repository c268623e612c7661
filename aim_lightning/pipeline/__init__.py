"""Network and tokenizer together: labels in, images out; from a run, a directory or the hub."""

from aim_lightning.pipeline.frames import frames
from aim_lightning.pipeline.from_run import load, load_tokenizer
from aim_lightning.pipeline.pipeline import AiMPipeline

__all__ = ["AiMPipeline", "frames", "load", "load_tokenizer"]
