"""Cross-entropy of rows of logits, and its gradient in place of them."""

import triton
import triton.language as tl


@triton.jit
def cross_entropy(logits, targets, losses, vocabulary, factor, WITH_GRADIENT: tl.constexpr, WIDTH: tl.constexpr):
    """Compute the loss of each row, and overwrite its logits by (softmax - one-hot) * factor. Grid (rows)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    mask = column < vocabulary
    start = logits + row * vocabulary
    value = tl.load(start + column, mask=mask, other=float("-inf")).to(tl.float32)
    target = tl.load(targets + row)
    largest = tl.max(value, 0)
    exponentials = tl.exp(value - largest)
    total = tl.sum(exponentials, 0)
    chosen = tl.sum(tl.where(column == target, value, 0.0), 0)
    tl.store(losses + row, tl.log(total) + largest - chosen)
    if WITH_GRADIENT:
        gradient = (exponentials / total - tl.where(column == target, 1.0, 0.0)) * factor
        tl.store(start + column, gradient.to(logits.dtype.element_ty), mask=mask)
