"""Network and tokenizer together: labels in, pictures out; from a run, a folder or the hub."""

from aim_lightning.pipeline.generator import AiMPipeline
from aim_lightning.pipeline.load import load
from aim_lightning.pipeline.tokenizer import load_tokenizer

__all__ = ["AiMPipeline", "load", "load_tokenizer"]
