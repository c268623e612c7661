"""The state-space-dual scan of Mamba-2 in plain PyTorch (arXiv 2405.21060, section 6).

Shapes: B batch, L steps, H heads, P channels per head, N state width, C chunks, Q steps per chunk.
One head computes  h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,  y_t = h_t C_t.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def scan_ref(x_BLHP: Tensor, dt_BLH: Tensor, a_H: Tensor, b_BLN: Tensor, c_BLN: Tensor) -> Tensor:
    """Compute the recurrence step by step: slow, the reference that everything else is tested against.

    Returns:
        y_BLHP, without the skip term D.
    """
    batch, length, heads, channels = x_BLHP.shape
    state_BHPN = x_BLHP.new_zeros(batch, heads, channels, b_BLN.shape[-1])
    ys = []
    for t in range(length):
        y_BHP, state_BHPN = scan_step(x_BLHP[:, t], dt_BLH[:, t], a_H, b_BLN[:, t], c_BLN[:, t], state_BHPN)
        ys.append(y_BHP)
    return torch.stack(ys, dim=1)


def scan_step(
    x_BHP: Tensor, dt_BH: Tensor, a_H: Tensor, b_BN: Tensor, c_BN: Tensor, state_BHPN: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute one step of the recurrence and return (y_BHP, the new state_BHPN)."""
    decay_BH = torch.exp(dt_BH * a_H)
    update_BHPN = (dt_BH[..., None] * x_BHP)[..., None] * b_BN[:, None, None, :]
    state_BHPN = decay_BH[..., None, None] * state_BHPN + update_BHPN
    return torch.einsum("bhpn,bn->bhp", state_BHPN, c_BN), state_BHPN


def scan_step_(x_BHP: Tensor, dt_BH: Tensor, a_H: Tensor, b_BN: Tensor, c_BN: Tensor, state_BHPN: Tensor) -> Tensor:
    """Compute `scan_step` with the state updated in place, in two passes over it instead of five; return y_BHP."""
    heads = x_BHP.shape[1]
    state = state_BHPN.flatten(0, 1)  # (BH, P, N), the same memory
    b, c = (v[:, None].expand(-1, heads, -1).flatten(0, 1) for v in (b_BN, c_BN))  # (BH, N)
    state.mul_(torch.exp(dt_BH * a_H).flatten()[:, None, None])
    state.baddbmm_((dt_BH[..., None] * x_BHP).flatten(0, 1)[..., None], b[:, None])
    return torch.bmm(state, c[..., None]).view_as(x_BHP)


def scan(x_BLHP: Tensor, dt_BLH: Tensor, a_H: Tensor, b_BLN: Tensor, c_BLN: Tensor, chunk_size: int = 64) -> Tensor:
    """Compute the recurrence in chunks: quadratic inside a chunk, a state passed from chunk to chunk.

    Memory grows linearly with L. Any L: the tail is padded with dt = 0, which changes nothing.

    Returns:
        y_BLHP, without the skip term D.
    """
    batch, length, heads, channels = x_BLHP.shape
    size = min(chunk_size, length)
    pad = -length % size
    if pad:
        x_BLHP, dt_BLH = F.pad(x_BLHP, (0, 0, 0, 0, 0, pad)), F.pad(dt_BLH, (0, 0, 0, pad))
        b_BLN, c_BLN = F.pad(b_BLN, (0, 0, 0, pad)), F.pad(c_BLN, (0, 0, 0, pad))
    # Heads before steps, so that every product below is one batched matrix product per chunk and head.
    dx_BCHQP = (x_BLHP * dt_BLH[..., None]).unflatten(1, (-1, size)).transpose(2, 3)
    b_BCQN, c_BCQN = b_BLN.unflatten(1, (-1, size)), c_BLN.unflatten(1, (-1, size))
    log_BCHQ = _log_decay(dt_BLH, a_H, size)

    y_BCHQP = _within_chunks(dx_BCHQP, b_BCQN, c_BCQN, log_BCHQ)
    if length > size:
        y_BCHQP = y_BCHQP + _across_chunks(dx_BCHQP, b_BCQN, c_BCQN, log_BCHQ)
    return y_BCHQP.transpose(2, 3).reshape(batch, -1, heads, channels)[:, :length]


def _log_decay(dt_BLH: Tensor, a_H: Tensor, size: int) -> Tensor:
    """Return the cumulative log decay within each chunk, (B, C, H, Q), in float64.

    Differences of these sums are exponents: in float32 their rounding alone would cost 1e-5 of y.
    """
    log_BLH = (dt_BLH * a_H).double()
    return log_BLH.unflatten(1, (-1, size)).cumsum(2).transpose(2, 3)


def _within_chunks(dx_BCHQP: Tensor, b_BCQN: Tensor, c_BCQN: Tensor, log_BCHQ: Tensor) -> Tensor:
    """Return y from the inputs of the same chunk: masked attention with decay in place of softmax."""
    size = log_BCHQ.shape[-1]
    future_QQ = torch.ones(size, size, dtype=torch.bool, device=log_BCHQ.device).triu(1)
    gap_BCHQQ = (log_BCHQ[..., :, None] - log_BCHQ[..., None, :]).to(dx_BCHQP.dtype)
    # exp(-inf) = 0 for later inputs. Masked before exp: positive exponents of the upper half could overflow.
    decay_BCHQQ = gap_BCHQQ.masked_fill(future_QQ, float("-inf")).exp()
    scores_BCQQ = c_BCQN @ b_BCQN.transpose(-1, -2)
    return (scores_BCQQ[:, :, None] * decay_BCHQQ) @ dx_BCHQP


def _across_chunks(dx_BCHQP: Tensor, b_BCQN: Tensor, c_BCQN: Tensor, log_BCHQ: Tensor) -> Tensor:
    """Return y from the states at the end of earlier chunks."""
    dtype = dx_BCHQP.dtype
    to_end_BCHQ = (log_BCHQ[..., -1:] - log_BCHQ).to(dtype).exp()
    # What each chunk adds to the state by its own end, then the recurrence over chunks.
    added_BCHPN = torch.einsum("bchqp,bchq,bcqn->bchpn", dx_BCHQP, to_end_BCHQ, b_BCQN)
    chunk_decay_BCH11 = log_BCHQ[..., -1].to(dtype).exp()[..., None, None]
    state_BHPN, entering = torch.zeros_like(added_BCHPN[:, 0]), []
    for chunk in range(added_BCHPN.shape[1]):
        entering.append(state_BHPN)
        state_BHPN = chunk_decay_BCH11[:, chunk] * state_BHPN + added_BCHPN[:, chunk]
    states_BCHPN = torch.stack(entering, dim=1)
    # The entering state decays up to step q of the chunk and is read out by C_q.
    return torch.einsum("bcqn,bchpn,bchq->bchqp", c_BCQN, states_BCHPN, log_BCHQ.to(dtype).exp())
