"""Counter-based random numbers: each value is a pure function of its purpose and counters.

SplitMix64 (Steele, Lea, Flood 2014) on int64 tensors, whose products wrap as the algorithm requires. The integers are
equal on every device.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def _shift_right(x: int | Tensor, bits: int) -> int | Tensor:
    # int64 shifts are arithmetic; the mask makes them logical.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _wrap(value: int | Tensor) -> int | Tensor:
    """Return the int64 of the same low 64 bits; tensors have wrapped already."""
    return value if isinstance(value, Tensor) else ((value + (1 << 63)) % (1 << 64)) - (1 << 63)


def _mix(x: int | Tensor) -> int | Tensor:
    x = _wrap((x ^ _shift_right(x, 30)) * _MIX_1)
    x = _wrap((x ^ _shift_right(x, 27)) * _MIX_2)
    return x ^ _shift_right(x, 31)


def hash_int64(purpose: str, *counters: int | Tensor) -> Tensor:
    """Return a uniform int64 (all 64 bits) for each element of the broadcast counters.

    Args:
        purpose: name of the random stream, such as "label_dropout"; streams are independent.
        counters: ints or int64 tensors that broadcast, such as seed, epoch and index.
    """
    digest = hashlib.sha256(purpose.encode()).digest()
    state = int.from_bytes(digest[:8], "little", signed=True)
    for counter in counters:
        # Integers stay on the host: copying one to a GPU would wait for all work that is queued there.
        value = counter.to(torch.int64) if isinstance(counter, Tensor) else _wrap(counter)
        state = _mix(_wrap((state ^ value) + _GOLDEN))
    return state if isinstance(state, Tensor) else torch.tensor(state)


def hash_uniform(purpose: str, *counters: int | Tensor) -> Tensor:
    """Return a float64 in [0, 1) for each element of the broadcast counters (see `hash_int64`)."""
    return _shift_right(hash_int64(purpose, *counters), 11).to(torch.float64) * 2.0**-53


def hash_seed(purpose: str, *counters: int) -> int:
    """Return a non-negative 63-bit seed for a library's generator."""
    return int(hash_int64(purpose, *counters)) & ((1 << 63) - 1)


def permutation(length: int, purpose: str, *counters: int) -> np.ndarray:
    """Return a permutation of 0 … length - 1 that depends on its arguments only."""
    generator = torch.Generator().manual_seed(hash_seed(purpose, *counters))
    return torch.randperm(length, generator=generator).numpy()
