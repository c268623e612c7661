"""The sampling kernels, through Triton's interpreter, against the filters; prints one JSON object.

It runs as a separate process, because the interpreter must be chosen before anything imports triton.
"""

import json
from types import SimpleNamespace

import torch
from sampling.kernels_on_cpu import OPTIONS

IMAGES, STEPS, STEP, SCALE, WIDTH = 4, 3, 1, 2.0, 16
CHUNK, SLOTS = 16, 8
LOGITS = "random", "tied", "equal", "neighbours", "skewed"
MORE = [{"top_k": 3}, {"top_k": 7, "top_p": 0.9}, {"top_k": 16, "top_p": 0.3}, {"top_k": 10**6, "top_p": 0.6}]


def scratch(logits, guided: bool, top_k: int, top_p: float, temperature: float) -> SimpleNamespace:
    """Return the part of `Buffers` that sampling uses, with several small chunks."""
    from aim_lightning.sampling.fast.buffers import no_bounds

    rows, vocabulary = logits.shape
    images, chunks = rows // (2 if guided else 1), max((1 << (vocabulary - 1).bit_length()) // CHUNK, 1)
    number = lambda value, dtype: torch.tensor(value, dtype=dtype)  # noqa: E731
    return SimpleNamespace(
        images=images, guided=guided, chunk=CHUNK, logits_MV=logits.contiguous(),
        codes_BT=torch.full((images, STEPS), -1), uniform_BT=torch.rand(images, STEPS, dtype=torch.float64),
        step=number(STEP, torch.int32), sampled=number(STEP, torch.int32), offset=number(0, torch.int32),
        done=number(0, torch.int32), diverged=number(0, torch.int32),
        scale_T=torch.full((STEPS,), SCALE), temperature=torch.tensor([temperature]), top_p=torch.tensor([top_p]),
        top_k=torch.tensor([min(top_k, vocabulary)], dtype=torch.int32),
        values_BCS=torch.full((images, chunks, SLOTS), -torch.inf),
        indices_BCS=torch.zeros(images, chunks, SLOTS, dtype=torch.int32), bounds_B3C=no_bounds(images, chunks),
    )  # fmt: skip


def sampled(logits, guided: bool, top_k: int = 0, top_p: float = 1.0, temperature: float = 1.0) -> SimpleNamespace:
    """Return the buffers after one step."""
    from aim_lightning.sampling.fast.launches import sample_codes

    buffers = scratch(logits, guided, top_k, top_p, temperature)
    words, residual = torch.randn(logits.shape[1], WIDTH), torch.full((len(logits), WIDTH), torch.nan)
    h = residual.clone()
    sample_codes(
        SimpleNamespace(vocab_size=logits.shape[1], num_tokens=STEPS, d_model=WIDTH), buffers,
        SimpleNamespace(sample_warps=4), {"CHAINED": False},
        SimpleNamespace(words=words, positions=None), (residual, torch.ones(WIDTH), h, h),
        {"ROWS": 3, "MODULATED": False, "BLOCK_D": WIDTH},
    )  # fmt: skip
    codes = buffers.codes_BT[:, STEP]
    assert codes.min() >= 0 and codes.max() < logits.shape[1]
    assert int(buffers.step) == int(buffers.sampled) == STEP + 1
    x = words[codes].repeat(len(logits) // len(codes), 1)
    assert torch.equal(residual, x) and torch.allclose(h, torch.nn.functional.rms_norm(x, (WIDTH,), eps=1e-5))
    assert int(buffers.done) == 0 and (buffers.codes_BT[:, [0, 2]] == -1).all()
    return buffers


def share_equal(logits, guided: bool, top_k: int = 0, top_p: float = 1.0, temperature: float = 1.0) -> float:
    """Return the share of codes that equal those of the filters."""
    from aim_lightning.sampling.filters import Filters, guide, sample_codes

    buffers = sampled(logits, guided, top_k, top_p, temperature)
    plain = guide(*logits.chunk(2), SCALE) if guided else logits
    expected = sample_codes(plain, buffers.uniform_BT[:, STEP], Filters(temperature, top_k, top_p))
    return (buffers.codes_BT[:, STEP] == expected).float().mean().item()


def logits_of(case: str, rows: int, vocabulary: int) -> torch.Tensor:
    """Return logits with few, with equal, or with too many candidates in one chunk."""
    logits = torch.randn(rows, vocabulary) * 3
    if case == "tied":
        return logits.round()
    if case == "equal":
        return torch.full_like(logits, -1.5)
    if case == "neighbours":  # floats next to a few values
        bits = logits.round().view(torch.int32) + torch.randint(0, 3, logits.shape, dtype=torch.int32)
        return bits.view(torch.float32)
    if case == "skewed":
        logits[:, vocabulary // 2 : vocabulary // 2 + CHUNK] += 20
    return logits


def table() -> dict[str, list[float]]:
    """Return the shares of equal codes by logits and vocabulary, one per set of options."""
    result = {}
    for case in LOGITS:
        for vocabulary, guided in ((61, True), (97, False), (7, False)):
            logits = logits_of(case, 2 * IMAGES if guided else IMAGES, vocabulary)
            name = f"{case} {vocabulary}"
            several = OPTIONS + MORE if vocabulary == 61 else MORE
            result[name] = [share_equal(logits, guided, **options) for options in several]
    return result


def paths() -> dict[str, int]:
    """Count the choices over all logits; top_k is 12 of 64 logits, half of which may be candidates."""
    from unittest import mock

    from aim_lightning.sampling.fast.kernels import sample_token

    result, complete = dict.fromkeys(LOGITS, 0), sample_token._sample_from_all
    for case in LOGITS:

        def count(*arguments, case=case):
            result[case] += 1
            return complete(*arguments)

        with mock.patch.object(sample_token, "_sample_from_all", count):
            sampled(logits_of(case, IMAGES, 64), False, top_k=12, top_p=0.9)
    return result


def wrong_candidates() -> list[str]:
    """List the chunks with wrong candidates."""
    wrong = []
    for case in LOGITS:
        logits = logits_of(case, IMAGES, 61)
        state = sampled(logits, False, top_k=3)
        for image, row in enumerate(logits):
            for chunk, x in enumerate(row.split(CHUNK)):
                value, index = state.values_BCS[image, chunk], state.indices_BCS[image, chunk]
                kept, (cutoff, least, best) = value > -torch.inf, state.bounds_B3C[image, :, chunk]
                indices = chunk * CHUNK + (x >= cutoff).nonzero().flatten()
                enough = len(indices) >= SLOTS * 3 // 4 or case in ("tied", "equal", "neighbours")
                right = torch.equal(index[kept], indices.int()) and torch.equal(value[kept], row[indices])
                if not (enough and right and least == x.min() and best == x.max()):
                    wrong.append(f"{case}, image {image}, chunk {chunk}")
    return wrong


def large() -> bool:
    """Return True if a sample from a preset's number of codes, with its chunks, equals that of the filters."""
    from unittest import mock

    from aim_lightning.sampling.fast.buffers import candidate_sizes

    chunk, slots, _ = candidate_sizes(16384)
    with mock.patch.multiple(__name__, CHUNK=chunk, SLOTS=slots, IMAGES=1):
        return share_equal(torch.randn(2, 16384), True, 600, 0.98) == 1


def diverging() -> list[int]:
    """Return the flags for NaN, infinities and finite logits, under every filter; codes are always valid."""
    flags = []
    for value in (torch.nan, torch.inf, -torch.inf, 0.0):
        for indices in (slice(7, 8), slice(0, 60), slice(16, 60)):
            logits = torch.randn(1, 60)
            logits[:, indices] = value
            flags += [int(sampled(logits, False, **options).diverged) for options in OPTIONS[:5]]
    return flags


def main() -> None:
    import mamba_reference

    mamba_reference.interpret()
    torch.manual_seed(0)
    report = {"equal": table(), "all": paths(), "wrong_candidates": wrong_candidates()}
    print(json.dumps(report | {"diverged": diverging(), "large": large()}))


if __name__ == "__main__":
    main()
