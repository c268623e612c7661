"""The fast decoder's Triton kernels through Triton's interpreter; prints one JSON object.

It runs as a separate process, because the interpreter must be chosen before anything imports triton.
"""

import json
from dataclasses import replace

import torch
from helpers import random_aim

from aim_lightning.models import AiM, AiMConfig

OPTIONS = [
    {"top_k": 1},
    {},
    {"top_k": 10, "temperature": 1.3},
    {"top_k": 20, "top_p": 0.8, "temperature": 0.9},
    {"top_p": 0.5},
    {"top_p": 0.05},
    {"top_k": 100, "top_p": 0.999, "temperature": 0.5},
]


def network(adaln: str, seed: int = 0, **sizes) -> AiM:
    """Return a small network whose codes vary."""
    default = {"d_model": 16, "n_layer": 2, "num_tokens": 9, "headdim": 16, "d_state": 16, "vocab_size": 40}
    return random_aim(AiMConfig(num_classes=3, adaln=adaln, num_groups=2, **default | sizes), 0.3, seed)


@torch.no_grad()
def codes_equal(adaln: str, guided: bool, stored: int = 5, states: int = 16) -> bool:
    """Return True if codes and last logits of the kernels are those of plain PyTorch.

    stored: of the 5 codes. states: d_state, which the mixer reads in blocks of 32.
    """
    from helpers import relative

    from aim_lightning.sampling.fast.buffers import Buffers
    from aim_lightning.sampling.fast.decoder import FastDecoder
    from aim_lightning.sampling.fast.triton_step import TritonStep
    from aim_lightning.sampling.filters import Filters

    model, labels, indices = network(adaln, num_tokens=5, d_state=states), torch.tensor([1]), torch.tensor([3])
    options = {"seed": 1, "scales": [2.0] * 5, "filters": Filters(top_k=10, top_p=0.9)}
    options["on_step"] = lambda *_: None  # single steps, after each of which a chunk may end
    decoder = FastDecoder(model, 1, guided, torch.float32)
    logits = logits_of(decoder)
    expected = decoder.run(model, labels, indices, **options)
    decoder.buffers = Buffers(model, 1, guided, torch.float32, stored)  # the second run computes everything again
    for value in (*vars(decoder.buffers.layers[0]).values(), decoder.buffers.codes_BT):
        if value is not None:
            value.fill_(-1)
    decoder._step = TritonStep(model.config, decoder.weights, decoder.buffers)
    codes = decoder.run(model, labels, indices, **options)
    return torch.equal(codes, expected) and relative(decoder.buffers.logits_MV, logits[-1]) < 1e-5


def logits_of(decoder) -> list[torch.Tensor]:
    """Return a list to which a decoder in plain PyTorch appends the logits of every step."""
    logits, sample = [], decoder._step._sample
    decoder._step._sample = lambda logits_MV, step: (logits.append(logits_MV), sample(logits_MV, step))
    return logits


def products() -> dict[str, float]:
    """Return relative differences of the linear kernel from exact products of the same bfloat16 values."""
    from helpers import relative

    from aim_lightning.sampling.fast.kernel_configs import MatmulConfig
    from aim_lightning.sampling.fast.launches import linear

    result = {}
    for rows, inner, cols, split, early in [
        (3, 192, 40, 1, False),
        (70, 96, 33, 2, False),
        (66, 600, 20, 4, False),
        (2, 7, 5, 1, False),
        (5, 1536, 48, 4, True),
        (70, 384, 33, 1, True),
    ]:
        x, weight = (torch.randn(count, inner).bfloat16() for count in (rows, cols))
        out = torch.full((split, rows, cols), torch.nan)
        block_m = 8 if early and rows <= 8 else 16
        linear(x, weight, out, MatmulConfig(block_m, 32, 128, 3, 4, early), {"CHAINED": False})
        exact = x.double() @ weight.double().t()
        result[f"{rows}x{inner}x{cols}/{split}/{early}"] = relative(out.double().sum(0), exact)
    return result


@torch.no_grad()
def logits_in_bf16(
    d_model: int,
    heads: int,
    tokens: int = 4,
    early: bool = False,
    long: int = 256,
    columns: int = 0,
    chunk: int = 0,
    states: int = 16,
    fragments: bool = False,
    steps: int = 32,
) -> float:
    """Return the relative difference of the last logits, kernels against plain PyTorch, in bfloat16.

    Blocks of the past have `steps` codes: more tokens make several. early: weights are read early. long: tokens beyond
    which exponents are float64. columns: those of the recurrence per program. chunk: codes between states, a multiple
    of 8. states: d_state, of which the mixer reads blocks of 32. fragments: past codes are in registers.
    """
    from unittest import mock

    from helpers import relative

    from aim_lightning.sampling.fast import buffers, kernel_configs, triton_step
    from aim_lightning.sampling.fast.decoder import FastDecoder
    from aim_lightning.sampling.filters import Filters

    layers, images = (1, 1) if tokens > 4 else (3, 2)  # the interpreter is slow
    model = network("group", num_tokens=tokens, n_layer=layers, d_model=d_model, d_state=states)
    labels = torch.arange(images)
    # Rounding selects no other code at this temperature.
    options = {"seed": 2, "scales": [2.0] * tokens, "filters": Filters(temperature=1e6)}
    with mock.patch.object(buffers, "LONG", long):
        decoder = FastDecoder(model, images, True, torch.bfloat16)
    assert decoder.buffers.layers[0].decay_MH.dtype == (torch.float64 if tokens > long else torch.float32)
    plain = logits_of(decoder)
    decoder.run(model, labels, labels, **options)
    product = kernel_configs.MatmulConfig(8 if early else 16, 32, 64, 3, 1, early)
    small = replace(
        kernel_configs.table()[768, 32],
        project=product,
        out=product,
        mix=kernel_configs.MixerKernelConfig(heads, steps, 2, 2, fragments=fragments),
        state=kernel_configs.StateKernelConfig(columns or 16, 4),
    )
    with mock.patch.object(buffers, "LONG", long):
        decoder.buffers = buffers.Buffers(
            model, images, True, torch.bfloat16, 0 if columns else chunk or tokens, packed=True
        )
    with mock.patch.object(kernel_configs, "table", lambda: {(d_model, 2 * images): small}):
        decoder._step = triton_step.TritonStep(model.config, decoder.weights, decoder.buffers)
    configs = decoder._step.configs
    assert configs.project.early == configs.out.early == early and configs.mix.heads == heads
    decoder.run(model, labels, labels, **options)
    return relative(decoder.buffers.logits_MV, plain[-1])


def far_row() -> bool:
    """Return True if the mixer is right for a row past 2^31 values; untouched pages use no memory."""
    from aim_lightning.sampling.fast import kernels

    T, inner, N = 2**27, 32, 16
    new = lambda *shape, dtype=torch.float32: torch.randn(shape).to(dtype)  # noqa: E731
    xs = torch.empty(T // 2 * inner + inner, dtype=torch.int16)
    bs = torch.empty(T // 2 * N + N, dtype=torch.int16)
    K = inner + 2 * N
    zx, conv = new(2, inner + K + 2, dtype=torch.bfloat16), (new(4, K), new(K))
    ring = torch.empty(4, 2, K, dtype=torch.bfloat16)
    gate, newest, b = (torch.empty(2, count, dtype=torch.bfloat16) for count in (inner, inner, N))
    c, dt = torch.empty(2, N), torch.empty(2, 2)
    step = torch.zeros((), dtype=torch.int32)
    xs[-inner:] = 0
    kernels.activate_kernel[(1, 2)](
        zx, ring, *conv, new(2), gate, newest, b, c, dt, step, 2, INNER=inner, H=2, N=N, TAPS=4, BLOCK_N=128
    )
    y, squares, gs = torch.full((2, inner), torch.nan, dtype=torch.bfloat16), torch.empty(2, 1), torch.empty(3 * T + 1)
    kernels.mixer_kernel[(2, 1)](
        gate, newest, b, c, dt, xs, bs, gs, torch.empty(2, 2), y, new(2), new(2), new(inner), y, squares, step, T,
        INNER=inner, H=2, P=16, N=N, HEADS=2, STEPS=32, CHUNK=0, AHEAD=0, AHEAD_B=0, LINE=64, CHAINED=False,
    )  # fmt: skip
    assert y.isfinite().all()
    residual, norm = torch.zeros(2, 8), torch.ones(8)
    kernels.advance_kernel[(2, 2)](
        torch.zeros(2, 8), squares, residual, residual, norm, residual, norm, residual.clone(), newest, b, dt, xs, bs,
        gs, torch.empty(2, 2), new(2), step, 8, 1e-5, 2, T, GATE_ROWS=3, ROWS=1, MODULATED=False, FINAL=False, PARTS=1,
        PARTS_BLOCK=1, SPLIT=1, BLOCK=8, INNER=inner, H=2, P=16, N=N, HEADS=2, CHUNK=0, CHAINED=False,
    )  # fmt: skip
    x = torch.nn.functional.silu(conv[1][:inner] + zx[1, inner : 2 * inner].float() * conv[0][3, :inner])
    heads = x.view(2, 16)
    units = heads / torch.maximum(heads.amax(1) / 318, -heads.amin(1) / 64)[:, None]
    values = (xs[-inner:].view(2, 16) | 0x4300).view(torch.bfloat16).float() - 192
    # The interpreter truncates instead of rounding.
    return bool(((values - units).abs() < 1.5 + units.abs() / 60).all())


def fetched(step: int = 40, line: int = 8) -> list[list[int]]:
    """List the pairs of codes of row 1 whose x, and those whose B, the mixer kernel prefetches completely.

    x of the last 20 codes, B of the last 30; two programs a row.
    """
    from unittest import mock

    from aim_lightning.sampling.fast.kernels import mixer_step, past

    T, N, inner, seen = 64, 32, 64, set()
    new = lambda *shape: torch.randn(shape).bfloat16()  # noqa: E731
    xs, bs = (torch.zeros(2, T // 2, count, dtype=torch.int16) for count in (inner, N))
    gate, newest, y, b, c = new(2, inner), new(2, inner), new(2, inner), new(2, N), torch.rand(2, N)
    gs, per_head = torch.zeros(2, 4, T), [torch.rand(2, 4) for _ in range(2)]
    note = lambda pointers: seen.update(pointers.handle.data.flatten().tolist())  # noqa: E731
    nothing = lambda chained: None  # noqa: E731
    waiting = mock.patch.multiple(mixer_step, _wait=nothing, _start_next=nothing)
    with waiting, mock.patch.object(past, "_prefetch", note):
        mixer_step.mixer_kernel[(2, 2)](
            gate, newest, b, c, per_head[1], xs, bs, gs, per_head[0], y, torch.ones(4), torch.ones(4),
            torch.ones(inner), y, torch.zeros(2, 2), torch.tensor(step, dtype=torch.int32), T, INNER=inner, H=4, P=16,
            N=N, HEADS=2, STEPS=32, CHUNK=0, AHEAD=20, AHEAD_B=30, LINE=line, CHAINED=True,
        )  # fmt: skip
    result, stored = [], set()
    for values in (xs, bs):
        addresses = {values.data_ptr() + 2 * i for i in range(0, values.numel(), line)} & seen
        stored |= addresses
        width = values.shape[2]
        codes = [(address - values[1].data_ptr()) // (2 * width) for address in addresses]
        result.append(sorted(code for code in set(codes) if code >= 0 and codes.count(code) == width // line))
    assert seen == stored
    return result


def multiply_bfloat16() -> None:
    """Fix bfloat16 products in Triton's interpreter, which stores and multiplies them as integers.

    Packed values become bfloat16 by an instruction, which it lacks.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    from aim_lightning.sampling.fast.kernels import fragments, packed

    values = lambda pairs, odd: ((pairs >> 8 * odd & 0xFF) | 0x4300).to(tl.bfloat16, bitcast=True)  # noqa: E731
    packed._values = fragments._values = values
    # The order of bytes in `_both_codes` is tested on a GPU alone.
    fragments._both_codes = lambda pairs: tl.join(values(pairs, 0), values(pairs, 1))

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    builder = interpreter.InterpreterBuilder
    dot = builder.create_dot
    builder.create_dot = lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest)


def main() -> None:
    import mamba_reference

    mamba_reference.interpret()
    multiply_bfloat16()
    torch.set_num_threads(1)
    report = {
        "codes": [codes_equal("group", True), codes_equal("none", False), codes_equal("layer", True, stored=0)],
        "chunks": [codes_equal("group", True, stored=2), codes_equal("layer", False, stored=4, states=64)],
        "products": products(),
        "bf16": [
            logits_in_bf16(48, 1),
            logits_in_bf16(32, 2),
            logits_in_bf16(16, 2, tokens=19, long=18),
            logits_in_bf16(32, 2, early=True),
            logits_in_bf16(48, 3),
            logits_in_bf16(48, 6, tokens=9),
            logits_in_bf16(16, 2, tokens=37),
            logits_in_bf16(48, 1, columns=8),
            logits_in_bf16(32, 2, early=True, columns=16),
            logits_in_bf16(48, 6, tokens=18, chunk=8),
            logits_in_bf16(16, 2, tokens=41, chunk=40, states=64),
        ],
        "fragments": [
            logits_in_bf16(32, 2, fragments=True),
            logits_in_bf16(48, 6, tokens=40, long=39, fragments=True, steps=64),
            logits_in_bf16(16, 2, tokens=37, fragments=True),
            logits_in_bf16(48, 3, tokens=18, chunk=8, fragments=True),
            logits_in_bf16(16, 2, tokens=46, chunk=40, fragments=True, states=64),
        ],
        "fetched": [fetched(), fetched(step=10)],
        "far_row": far_row(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
