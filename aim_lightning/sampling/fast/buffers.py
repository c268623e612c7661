"""Memory of the fast decoder, allocated once per shape: a captured graph contains addresses."""

from dataclasses import dataclass

import torch
from torch import Tensor

from aim_lightning.models import AiM, AiMConfig

LONG = 256  # codes up to which a running sum in float32 is accurate enough
CODES_PER_CHUNK = 64  # between two states of a long sequence, a multiple of the steps in a graph
CHUNKS = 16  # at most: parts of an image's logits, whose largest entries are gathered for the filters
CHUNK = 1024  # at least: logits per part
SLOTS = 128  # at most: entries gathered per part
PARTS = 4  # at most: parts of out_proj's sum
LEAST_COLUMNS = 8  # of a program of the recurrence


@dataclass
class LayerCache:
    """The inputs of one layer for the stored codes so far; M rows, T codes: all of a sequence, or those of a chunk.

    ring: last raw inputs of the convolution (d_conv, M, conv_dim), slot = step % d_conv; x_MTI, b_MTN: inputs of the
    scan; g_MHT: log dt - L; decay_MH: L, the running sum of dt A. Entries of later steps have no weight. Packed x and B
    are bytes, two codes in an int16, (M, (T + 1) / 2, ...). Their units differ by row, code and, for x, head; the
    logarithms of the units are part of g. state_MNI: at the end of the last chunk, before which L and g count nothing.
    The recurrence has only ring and state_MIN (float32).
    """

    ring: Tensor
    x_MTI: Tensor | None = None
    b_MTN: Tensor | None = None
    g_MHT: Tensor | None = None
    decay_MH: Tensor | None = None
    state_MNI: Tensor | None = None
    state_MIN: Tensor | None = None


class Buffers:
    """Static tensors for a number of images; with guidance the rows are images, then the same images without class.

    Args:
        model: gives sizes and device.
        images: images per call.
        guided: whether the null-class branch runs alongside the conditional one.
        dtype: type of weights, stored inputs and tensors between kernels; the exponents of the decay have
            `exponent_type`.
        stored: past codes whose inputs layers store: all (None), those of a chunk next to the state at the end of the
            last one, or 0 for the recurrence (`kernel_configs.stored_codes`).
        packed: whether x and B of past codes are packed, as the kernels read them in bfloat16.
    """

    def __init__(
        self, model: AiM, images: int, guided: bool, dtype: torch.dtype, stored: int | None = None, packed: bool = False
    ) -> None:
        config, device = model.config, model.lm_head.weight.device
        self.images, self.guided, self.dtype = images, guided, dtype
        self.stored = config.num_tokens if stored is None else stored
        self.codes_per_chunk = self.stored if self.stored < config.num_tokens else 0
        self.rows = images * (2 if guided else 1)
        empty = lambda *shape, dtype=dtype: torch.empty(shape, dtype=dtype, device=device)  # noqa: E731
        M, T = self.rows, config.num_tokens
        # State of a sequence. On the device, so that one graph serves every step: the layers' kernels read `step`, the
        # sampling kernels `sampled`, the number of codes, and set both.
        self.codes_BT = torch.zeros(images, T, dtype=torch.int64, device=device)
        self.step = torch.zeros((), dtype=torch.int32, device=device)
        self.sampled = torch.zeros((), dtype=torch.int32, device=device)
        self.done = torch.zeros((), dtype=torch.int32, device=device)
        self.offset = torch.zeros((), dtype=torch.int32, device=device)
        self.diverged = torch.zeros((), dtype=torch.int32, device=device)
        # Options of a call, and its random numbers.
        self.uniform_BT = empty(images, T, dtype=torch.float64)
        self.scale_T = empty(T, dtype=torch.float32)
        self.temperature, self.top_p = empty(1, dtype=torch.float32), empty(1, dtype=torch.float32)
        self.top_k = empty(1, dtype=torch.int32)
        # Condition of a call, then the values between the kernels of a step.
        self.start_MD = empty(M, config.d_model)
        self.layer_rows = self._modulation(empty, config, config.n_layer, config.modulation_rows)
        self.final_rows = self._modulation(empty, config, 1, 2)
        self.residual_MD = empty(M, config.d_model, dtype=torch.float32)
        self.h_MD = empty(M, config.d_model)
        columns = config.d_inner + config.conv_dim + config.nheads
        self.zxbcdt = empty(M, columns) if dtype == torch.float32 else None  # not stored in bfloat16
        self.gate_MI, self.x_MI = empty(M, config.d_inner), empty(M, config.d_inner)
        self.b_MN, self.c_MN = empty(M, config.d_state), empty(M, config.d_state)
        self.dt_MH = empty(M, config.nheads, dtype=torch.float32)
        self.y_MI = empty(M, config.d_inner)
        # A part of a row's sum of squares per program; kernels use as many per row as a row has programs.
        self.squares = empty(M, config.d_inner // LEAST_COLUMNS, dtype=torch.float32)
        self.out_SMD = empty(PARTS, M, config.d_model, dtype=torch.float32)
        self.logits_MV = empty(M, config.vocab_size, dtype=torch.float32)  # guidance multiplies rounding
        self.chunk, slots, chunks = candidate_sizes(config.vocab_size)
        self.values_BCS = torch.full((images, chunks, slots), -torch.inf, dtype=torch.float32, device=device)
        self.indices_BCS = torch.zeros(images, chunks, slots, dtype=torch.int32, device=device)
        self.bounds_B3C = no_bounds(images, chunks, device)
        self.layers = [self._cache(empty, config, packed) for _ in range(config.n_layer)]

    def set_step(self, step: int) -> None:
        """Set the number of the next step; the codes before it are those in memory."""
        self.step.fill_(step)
        self.sampled.fill_(step)

    def _cache(self, empty, config: AiMConfig, packed: bool) -> LayerCache:
        """Allocate the memory of one layer."""
        M, T = self.rows, self.stored
        ring = empty(config.d_conv, M, config.conv_dim)
        if not T:
            return LayerCache(ring, state_MIN=empty(M, config.d_inner, config.d_state, dtype=torch.float32))
        length, stored = ((T + 1) // 2, torch.int16) if packed else (T, self.dtype)
        x, b = (empty(M, length, count, dtype=stored) for count in (config.d_inner, config.d_state))
        exponent = exponent_type(T, self.dtype)
        g, decay = empty(M, config.nheads, T, dtype=exponent), empty(M, config.nheads, dtype=exponent)
        state = empty(M, config.d_state, config.d_inner) if self.codes_per_chunk else None
        return LayerCache(ring, x, b, g, decay, state)

    def _modulation(self, empty, config: AiMConfig, layers: int, vectors: int) -> Tensor | None:
        """Allocate a number of vectors per layer and row, or return None where the network has no modulation."""
        return None if config.adaln == "none" else empty(layers, self.rows, vectors, config.d_model)


def candidate_sizes(vocab_size: int) -> tuple[int, int, int]:
    """Return logits per chunk, entries gathered per chunk, and chunks, all powers of two; the last may be empty."""
    block = 1 << (vocab_size - 1).bit_length()
    chunk = max(min(CHUNK, block), block // CHUNKS)
    return chunk, min(SLOTS, chunk), block // chunk


def no_bounds(images: int, chunks: int, device: torch.device | str | None = None) -> Tensor:
    """Return cutoff, least and largest entry of empty chunks, (images, 3, chunks)."""
    none = torch.tensor([-torch.inf, torch.inf, -torch.inf], dtype=torch.float32, device=device)
    return none[None, :, None].repeat(images, 1, chunks)


def exponent_type(stored: int, dtype: torch.dtype) -> torch.dtype:
    """Return the type of L, the running sum of dt A, and of log dt - L: their rounding grows with the codes.

    float64 where the dual form must equal the recurrence to rounding, and for more than LONG stored codes: in
    float32 the weights of 1,024 codes would be wrong by about 1 %.
    """
    return torch.float64 if dtype == torch.float32 or stored > LONG else torch.float32


def bytes_needed(config: AiMConfig, images: int, guided: bool, dtype: torch.dtype) -> int:
    """Return the device memory of `Buffers`, nearly all of it stored inputs, states, modulation and logits.

    Sequences of more than LONG codes store a chunk and a state.
    """
    rows, size = images * (2 if guided else 1), dtype.itemsize
    value = 1 if dtype == torch.bfloat16 else size  # packed on a GPU; a CPU's memory counts as unlimited
    long = config.num_tokens > LONG
    codes = CODES_PER_CHUNK if long else config.num_tokens
    stored = codes * ((config.d_inner + config.d_state) * value + config.nheads * exponent_type(codes, dtype).itemsize)
    stored += config.d_inner * config.d_state * size * long
    modulation = 0 if config.adaln == "none" else config.modulation_rows * config.d_model * size
    return rows * (
        config.n_layer * (stored + modulation + config.d_conv * config.conv_dim * size) + config.vocab_size * 4
    )
