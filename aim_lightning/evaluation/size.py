"""Images are scored only against real ones of their size."""

from typing import Any

from aim_lightning.utils.errors import UserError

Size = tuple[int, int]  # height, width


def check_size(size: Size | None, real: Size | None) -> None:
    """Raises UserError unless both are the same; None = not known."""
    if size is not None and real is not None and tuple(size) != tuple(real):
        ours, theirs = ("x".join(map(str, reversed(one))) for one in (size, real))
        raise UserError(f"the images are {ours} pixels, those of the reference {theirs}; make them alike first")


def drawn_size(tokenizer: Any) -> Size | None:
    """Of what a tokenizer decodes; None where it does not tell."""
    size = getattr(getattr(tokenizer, "config", None), "image_size", None)
    return None if size is None else (size, size)
